"""The searches of all slots as arrays, by the names of `mplug.contract.SEARCH_STATE` and `SEARCH_OPTIONS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mplug.contract import NUMPY_TYPES, SEARCH_FILL, SEARCH_OPTIONS, SEARCH_STATE
from mplug.runtime.room import Room

SEARCH_TENSORS = (*SEARCH_STATE, *SEARCH_OPTIONS)


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
    row[...] = SEARCH_FILL.get(name, 0)
    row[(0, *map(slice, np.shape(value)))] = value


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
    scores = np.full(beams, SEARCH_FILL["SCORES"], np.float32)
    scores[0] = 0.0  # every beam starts from the same prefix; only one may continue it, or all would be alike
    return {
        "TOKENS": np.full(beams, prefix[0], np.int32),
        "SCORES": scores,
        "ANCESTRY": np.full((beams, 0), -1, np.int32),
        "POSITIONS": np.int32(0),
        "OVER": np.int32(0),
        "ENCODER_MASK": encoder_mask,
        "PREFIX": np.asarray(prefix, np.int32),
        "OPTIONS": np.array([len(prefix), beams, min_length, max_length, *token_range], np.int32),
    }
