"""Describe how large the decoder's caches are, and decide when they grow and shrink."""

from __future__ import annotations

from dataclasses import astuple, dataclass

#: Positions and encoder states are reserved in these multiples, so that the step's shapes, which the runtime plans
#: for, are few. With 64 values per head, each slot then begins at an address that TensorRT accepts.
POSITION_MULTIPLE, STATE_MULTIPLE = 8, 32
#: Recorded steps run a multiple of so many slots.
SLOT_MULTIPLE = 4
#: Room up to this many times what is needed is kept; beyond that it is given back.
SPARE_FACTOR = 2


@dataclass(frozen=True)
class Room:
    """Lengths of the decoder's caches. Every slot holds one request."""

    slots: int = 0
    positions: int = 0  #: tokens whose keys a slot holds
    columns: int = 0  #: keys per position: one for each beam
    states: int = 0  #: encoder states

    @classmethod
    def rounded(cls, slots: int, positions: int, columns: int, states: int, max_slots: int) -> Room:
        """Return the room for these lengths: slots a power of two, at most `max_slots`."""
        return cls(
            min(1 << (slots - 1).bit_length(), max_slots),
            round_up(positions, POSITION_MULTIPLE),
            columns,
            round_up(states, STATE_MULTIPLE),
        )

    @property
    def keys(self) -> int:
        """Keys that one head of one layer holds."""
        return self.slots * (self.positions * self.columns + self.states)

    def common(self, other: Room) -> Room:
        """Return the part that both rooms have."""
        return Room(*map(min, astuple(self), astuple(other)))

    def widened(self, held: Room) -> Room:
        """Return this room, keeping what is held already as far as that costs a step little.

        Slots cost nothing, since unused ones are not read. Positions, columns and states are all read, masked or not.
        """
        keys, held_keys = self.positions * self.columns, held.positions * held.columns
        past = held if keys <= held_keys <= SPARE_FACTOR * keys else self
        return Room(
            max(self.slots, held.slots),
            max(self.positions, past.positions),
            max(self.columns, past.columns),
            held.states if self.states <= held.states <= SPARE_FACTOR * self.states else self.states,
        )


def step_slots(slots: int, most: int) -> int:
    """Return how many slots a recorded step runs for so many in use: 1, 2 or a multiple of four, at most `most`.

    Every size is a recording of its own, and every slot above those in use is computed in vain.
    """
    return min(slots if slots <= 2 else round_up(slots, SLOT_MULTIPLE), most)


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple
