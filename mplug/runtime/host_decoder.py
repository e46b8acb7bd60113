"""The decoder's slots and caches in the memory of the host, for runtimes that compute there.

Caches are one array per layer and kind, `[slots, …]`, so that the slots in use are always a prefix that
the compiled step reads in place: nothing is gathered, sliced or copied on the way in. A step gives back
only the keys and values of its own tokens, which are written here into the position's columns, and the
search's state, which goes into the arrays that the next step reads.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from mplug.contract import SEARCH_STATE, STEP_CHOICES
from mplug.runtime import freed_memory
from mplug.runtime.interface import StepChoices
from mplug.runtime.room import Room
from mplug.runtime.search_state import carry_over, empty_state, write_row

#: Search tensors with an axis for beams.
PER_BEAM = frozenset(tensor.name for tensor in SEARCH_STATE if "M" in tensor.axes)


class HostDecoder(ABC):
    """Caches of `mplug.runtime.interface.Decoder`; a runtime adds the two compiled graphs."""

    spare_bytes = 0
    chunk = 1

    def __init__(self, *, layers: int, heads: int, head_width: int, cache_dtype: np.dtype) -> None:
        self._arrays = 2 * layers
        self._heads, self._head_width = heads, head_width
        self._dtype = cache_dtype
        self._room = Room()
        self._sources: list[bytes] = []  # by slot, what its cross-attention keys were computed from; empty: nothing
        # Zeros, not whatever was in memory: a masked place counts 0 × what it holds.
        self._past = np.zeros((self._arrays, 0, heads, 0, 0, head_width), cache_dtype)
        self._cross = np.zeros((self._arrays, 0, heads, 0, head_width), cache_dtype)
        self._search = empty_state(self._room)
        self._inputs: dict[str, np.ndarray] = {}  # what the step reads of the search
        self._stepped = (0, 0)  # slots and beams that the inputs are for

    def cache_bytes(self, room: Room) -> int:
        """See `Decoder.cache_bytes`."""
        return self._arrays * self._heads * self._head_width * self._dtype.itemsize * room.keys

    def reserve(self, room: Room) -> None:
        """See `Decoder.reserve`."""
        if room == self._room:
            return
        per_slot = (self._arrays, room.slots, self._heads)
        past = np.zeros((*per_slot, room.positions, room.columns, self._head_width), self._dtype)
        cross = np.zeros((*per_slot, room.states, self._head_width), self._dtype)
        for new, old in ((past, self._past), (cross, self._cross)):
            kept = tuple(slice(min(sides)) for sides in zip(new.shape, old.shape, strict=True))
            new[kept] = old[kept]
        sources = self._sources if room.states >= self._room.states else []  # what was cut off is not whole any more
        self._sources = (sources + [b""] * room.slots)[: room.slots]
        search = empty_state(room)
        carry_over(self._search, search)
        self._past, self._cross, self._search, self._room = past, cross, search, room
        self._stepped = (0, 0)
        self._bind(list(past), list(cross))
        del past, cross, new, old
        freed_memory.trim()

    def admit(self, slot: int, encoder_states: np.ndarray) -> None:
        """See `Decoder.admit`; keys that some slot still holds of the same states are copied."""
        length = encoder_states.shape[0]
        # What the last request left here is masked, but a masked place counts 0 × what it holds, and 0 × NaN is NaN.
        self._past[:, slot] = 0
        source = _digest(encoder_states)
        if source == self._sources[slot]:
            return
        same = self._sources.index(source) if source in self._sources else None
        self._sources[slot] = b""
        self._cross[:, slot, :, length:] = 0
        if same is None:
            for index, array in enumerate(self._prefill(encoder_states[None])):
                self._cross[index, slot, :, :length] = array[0]
        else:
            self._cross[:, slot, :, :length] = self._cross[:, same, :, :length]
        self._sources[slot] = source

    def load(self, slot: int, search: Mapping[str, np.ndarray]) -> None:
        """See `Decoder.load`."""
        for name, value in search.items():
            write_row(name, self._search[name][slot : slot + 1], value)
        self._stepped = (0, 0)

    def move(self, source: int, target: int) -> None:
        """See `Decoder.move`."""
        self._past[:, target] = self._past[:, source]
        self._cross[:, target] = self._cross[:, source]
        self._sources[target] = self._sources[source]
        for array in self._search.values():
            array[target] = array[source]
        self._stepped = (0, 0)

    def step(self, slots: int, beams: int, count: int = 1) -> list[StepChoices]:
        """See `Decoder.step`; with one step at a time nothing is kept of those before."""
        assert count == 1, f"{count} steps at once, and there is room for the choices of one"
        if (slots, beams) != self._stepped:
            self._inputs = {name: _prefix(name, array, slots, beams) for name, array in self._search.items()}
            self._bind_search(self._inputs)
            self._stepped = (slots, beams)
        outputs = self._run_step(slots)
        written, positions = outputs["WRITTEN"], self._inputs["POSITIONS"]  # written: [2·layers, S, H, M, D]
        for slot in range(slots):
            self._past[:, slot, :, positions[slot], :beams] = written[:, slot]
        for tensor in SEARCH_STATE:
            following = outputs[f"NEXT_{tensor.name}"]
            self._inputs[tensor.name][...] = following
            if beams != self._room.columns and tensor.name in PER_BEAM:  # the step read a copy
                self._search[tensor.name][:slots, :beams] = following
        return [StepChoices(*(outputs[name] for name in STEP_CHOICES))]

    @abstractmethod
    def _bind(self, past: list[np.ndarray], cross: list[np.ndarray]) -> None:
        """Let the step read these arrays from now on, `[slots, …]` each, key before value."""

    @abstractmethod
    def _bind_search(self, inputs: dict[str, np.ndarray]) -> None:
        """Let the step read these arrays from now on, of the slots in use alone."""

    @abstractmethod
    def _prefill(self, encoder_states: np.ndarray) -> list[np.ndarray]:
        """Compute keys and values `[1, H, A, D]` per layer of states `[1, A, W]`, in the type of the cache."""

    @abstractmethod
    def _run_step(self, slots: int) -> Mapping[str, np.ndarray]:
        """Run the step on the first slots; outputs by their names in the contract."""


def _digest(states: np.ndarray) -> bytes:
    """A name of these values that no others have; a hundredth of the time that their keys take."""
    return hashlib.sha256(np.ascontiguousarray(states)).digest() + len(states).to_bytes(4)


def _prefix(name: str, array: np.ndarray, slots: int, beams: int) -> np.ndarray:
    """The part of a search tensor that a step reads, in place where that is contiguous."""
    array = array[:slots]
    return np.ascontiguousarray(array[:, :beams]) if name in PER_BEAM else array
