"""Cross-attention keys of states that some slot still holds are copied, never others'."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mplug.runtime.host_decoder import HostDecoder
from mplug.runtime.room import Room

LAYERS, HEADS, HEAD_WIDTH = 1, 1, 4


class Prefill(HostDecoder):
    """Keys are the states plus one, values the states plus two; steps are not run."""

    def __init__(self) -> None:
        super().__init__(layers=LAYERS, heads=HEADS, head_width=HEAD_WIDTH, cache_dtype=np.dtype(np.float32))
        self.prefills = 0
        self.fail: Exception | None = None
        self.cross: list[np.ndarray] = []

    def _bind(self, past, cross):
        self.cross = cross

    def _bind_search(self, inputs):
        raise AssertionError("no step is run")

    def _prefill(self, encoder_states):
        self.prefills += 1
        if self.fail is not None:
            raise self.fail
        return [encoder_states[:, None] + 1, encoder_states[:, None] + 2]

    def _run_step(self, slots):
        raise AssertionError("no step is run")

    def holds(self, slot: int, states: np.ndarray) -> bool:
        """Whether a slot holds these states' keys and values, and zeros behind them."""
        length = len(states)
        return all(
            np.array_equal(array[slot, 0, :length], states + added, equal_nan=True)
            and not array[slot, 0, length:].any()
            for added, array in enumerate(self.cross, start=1)
        )


@pytest.fixture
def states() -> Callable[[int], np.ndarray]:
    """States `[A, 4]` by number, of 3 lengths."""
    return lambda number: np.random.default_rng(number).random((5 + number % 3, HEAD_WIDTH), np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_every_slot_holds_its_own_request(seed: int, states) -> None:
    """Whatever was admitted, moved and resized before; four pictures in eight slots."""
    dice, decoder = np.random.default_rng(seed), Prefill()
    held: dict[int, int] = {}
    room = Room(8, 8, 2, 8)
    decoder.reserve(room)
    admissions = 0
    for _ in range(300):
        what = dice.integers(10)
        if what < 6:
            slot, number = int(dice.integers(room.slots)), int(dice.integers(4))
            if len(states(number)) <= room.states:
                decoder.admit(slot, states(number))
                held[slot] = number
                admissions += 1
        elif what < 9:
            source, target = (int(slot) for slot in dice.integers(room.slots, size=2))
            if source in held:
                decoder.move(source, target)
                held[target] = held[source]
        else:
            room = Room(int(dice.choice([2, 4, 8])), 8, 2, int(dice.choice([5, 8, 32])))
            decoder.reserve(room)
            held = {
                slot: number
                for slot, number in held.items()
                if slot < room.slots and len(states(number)) <= room.states
            }
        for slot, number in held.items():
            assert decoder.holds(slot, states(number))
    assert 4 <= decoder.prefills < admissions / 2


def test_the_same_picture_again_is_not_computed_again(states) -> None:
    """In the slot that had it, or in another; another picture is."""
    decoder = Prefill()
    decoder.reserve(Room(4, 8, 2, 8))
    for slot in (0, 0, 2):
        decoder.admit(slot, states(1))
    assert decoder.prefills == 1
    almost = states(1)
    almost[-1, -1] = np.nextafter(almost[-1, -1], np.float32(2))
    decoder.admit(1, almost)
    assert decoder.prefills == 2 and decoder.holds(1, almost) and decoder.holds(2, states(1))


def test_a_prefill_that_fails_leaves_nothing_to_share(states) -> None:
    decoder = Prefill()
    decoder.reserve(Room(2, 8, 2, 8))
    decoder.fail = MemoryError("no memory")
    with pytest.raises(MemoryError):
        decoder.admit(0, states(1))
    decoder.fail = None
    decoder.admit(1, states(1))
    assert decoder.prefills == 2 and decoder.holds(1, states(1))
