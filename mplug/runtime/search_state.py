"""The searches of all slots as arrays, by the names of `mplug.contract.SEARCH_STATE` and `SEARCH_OPTIONS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mplug.contract import MAX_BEAMS, NUMPY_TYPES, SEARCH_FILL, SEARCH_OPTIONS, SEARCH_STATE
from mplug.runtime.room import Room

SEARCH_TENSORS = (*SEARCH_STATE, *SEARCH_OPTIONS)

# Rows that every search begins with. Every beam starts from the same prefix; only one may continue it, or all would be
# alike.
_FIRST_SCORES = np.full(MAX_BEAMS, SEARCH_FILL["SCORES"], np.float32)
_FIRST_SCORES[0] = 0.0
_NO_PAST = np.empty((MAX_BEAMS, 0), np.int32)
_ZERO = np.int32(0)


def search_shapes(room: Room) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return the shape and type of every search tensor for all slots of a room."""
    lengths = {"S": room.slots, "M": room.columns, "T": room.positions, "A": room.states}
    return {
        tensor.name: (tuple(lengths.get(axis, axis) for axis in tensor.axes), np.dtype(NUMPY_TYPES[tensor.dtype]))
        for tensor in SEARCH_TENSORS
    }


def empty_state(room: Room) -> dict[str, np.ndarray]:
    """Return the search tensors of slots that hold no request."""
    return {
        name: np.full(shape, SEARCH_FILL.get(name, 0), dtype) for name, (shape, dtype) in search_shapes(room).items()
    }


def carry_over(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> None:
    """Copy what two rooms have in common, so that searches go on in the new one.

    A search that does not fit any more is nobody's: its slot is emptied, or a step could run past the room.
    """
    for name, array in new.items():
        kept = tuple(slice(min(sides)) for sides in zip(array.shape, old[name].shape, strict=True))
        array[kept] = old[name][kept]
    options = new["OPTIONS"]
    stale = options[:, 0] + options[:, 3] - 1 > new["PREFIX"].shape[1]  # prefix and most tokens behind it
    for name in ("POSITIONS", "OPTIONS"):  # without options a search is over at once
        new[name][stale] = 0


def write_row(name: str, row: np.ndarray, value: np.ndarray) -> None:
    """Write a value `[…]` into one slot's row `[1, …]`, and what an unused place holds behind it."""
    row.fill(SEARCH_FILL.get(name, 0))
    row[(0, *map(slice, value.shape))] = value


def new_search(
    *,
    prefix: Sequence[int],
    encoder_mask: np.ndarray,
    beams: int,
    min_length: int,
    max_length: int,
    token_range: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Return the rows of a search that begins, for `Decoder.load`."""
    ids = np.array(prefix, np.int32)
    return {
        "TOKENS": ids[:1].repeat(beams),
        "SCORES": _FIRST_SCORES[:beams],
        "ANCESTRY": _NO_PAST[:beams],
        "POSITIONS": _ZERO,
        "OVER": _ZERO,
        "ENCODER_MASK": encoder_mask,
        "PREFIX": ids,
        "OPTIONS": np.array([len(prefix), beams, min_length, max_length, *token_range], np.int32),
    }
