"""The decoder's slots and caches in the memory of the host, for runtimes that compute there.

Caches are one array per layer and kind, `[slots, …]`, so that the slots in use are always a prefix that
the compiled step reads in place: nothing is gathered, sliced or copied on the way in. A step gives back
only the keys and values of its own tokens, which are written here into the position's columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from mplug.runtime.room import Room


class HostDecoder(ABC):
    """Caches of `mplug.runtime.interface.Decoder`; a runtime adds the two compiled graphs."""

    spare_bytes = 0

    def __init__(self, *, layers: int, heads: int, head_width: int, cache_dtype: np.dtype) -> None:
        self._arrays = 2 * layers
        self._heads, self._head_width = heads, head_width
        self._dtype = cache_dtype
        self._room = Room()
        # Zeros, not whatever was in memory: a masked place counts 0 × what it holds.
        self._past = np.zeros((self._arrays, 0, heads, 0, 0, head_width), cache_dtype)
        self._cross = np.zeros((self._arrays, 0, heads, 0, head_width), cache_dtype)

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
        self._past, self._cross, self._room = past, cross, room
        self._bind(list(past), list(cross))

    def admit(self, slot: int, encoder_states: np.ndarray) -> None:
        """See `Decoder.admit`."""
        length = encoder_states.shape[0]
        # What the last request left here is masked, but a masked place counts 0 × what it holds, and 0 × NaN is NaN.
        self._past[:, slot] = 0
        self._cross[:, slot, :, length:] = 0
        for index, array in enumerate(self._prefill(encoder_states[None])):
            self._cross[index, slot, :, :length] = array[0]

    def move(self, source: int, target: int) -> None:
        """See `Decoder.move`."""
        self._past[:, target] = self._past[:, source]
        self._cross[:, target] = self._cross[:, source]

    def step(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        ancestry: np.ndarray,
        encoder_mask: np.ndarray,
        end_blocked: np.ndarray,
        token_range: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Decoder.step`; `ancestry` and `encoder_mask` may be narrower than the room reserved."""
        slots, beams = tokens.shape
        ancestry = _padded(ancestry, self._room.positions, -1)
        encoder_mask = _padded(encoder_mask, self._room.states, 0)
        next_tokens, log_probabilities, written = self._run_step(
            {
                "TOKENS": tokens,
                "POSITIONS": positions,
                "ANCESTRY": ancestry,
                "ENCODER_MASK": encoder_mask,
                "END_BLOCKED": end_blocked,
                "TOKEN_RANGE": token_range,
            }
        )  # written: [2·layers, S, H, M, D]
        for slot in range(slots):
            self._past[:, slot, :, positions[slot], :beams] = written[:, slot]
        return next_tokens, log_probabilities

    @abstractmethod
    def _bind(self, past: list[np.ndarray], cross: list[np.ndarray]) -> None:
        """Let the step read these arrays from now on, `[slots, …]` each, key before value."""

    @abstractmethod
    def _prefill(self, encoder_states: np.ndarray) -> list[np.ndarray]:
        """Compute keys and values `[1, H, A, D]` per layer of states `[1, A, W]`, in the type of the cache."""

    @abstractmethod
    def _run_step(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run the step on the first slots; outputs in the order of the contract."""


def _padded(array: np.ndarray, width: int, fill: int) -> np.ndarray:
    """Widen the last axis to `width`."""
    missing = width - array.shape[-1]
    if not missing:
        return array
    return np.concatenate([array, np.full((*array.shape[:-1], missing), fill, array.dtype)], axis=-1)
