"""What an encoding stage takes and gives: checked one request at a time, around the batch that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mplug.contract import ENCODERS, MAX_MAGNITUDE, PIXEL_STATISTICS, GraphSpec, TensorSpec
from mplug.errors import InvalidRequest, StageError
from mplug.runtime.interface import StageInfo


@dataclass(frozen=True)
class StageInputs:
    """The tensors of a stage, and the lengths that its checkpoint fixes."""

    spec: GraphSpec
    fixed: dict[str, int]  #: letters of axes (see `mplug.contract`) → their lengths
    max_text_length: int
    vocab_size: int

    @classmethod
    def of_stage(cls, folder: Path, name: str) -> StageInputs:
        """Read it from a built stage's folder."""
        sizes = StageInfo.read(folder).sizes
        fixed = {"R": sizes["image_size"], "W": sizes["hidden_size"]}
        return cls(ENCODERS[name], fixed, sizes["max_text_length"], sizes["vocab_size"])

    def check(self, inputs: dict[str, np.ndarray]) -> None:
        """Raise InvalidRequest naming the input."""
        lengths = dict(self.fixed)
        for tensor in self.spec.inputs:
            shape = inputs[tensor.name].shape
            if (
                len(shape) != len(tensor.axes)
                or not all(shape)
                or any(
                    length != (axis if isinstance(axis, int) else lengths.setdefault(axis, length))
                    for axis, length in zip(tensor.axes, shape, strict=True)
                )
            ):
                raise _wrong_shape(tensor, shape, lengths)
            if "L" in lengths and lengths["L"] > self.max_text_length:
                raise InvalidRequest(
                    f"{tensor.name}: {lengths['L']} tokens exceed the {self.max_text_length} that the checkpoint reads"
                )
            if tensor.dtype == "FP32":
                check_magnitude(tensor.name, inputs[tensor.name])
        ids = inputs.get("INPUT_IDS")
        if ids is not None and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise InvalidRequest(f"INPUT_IDS: ids must be 0…{self.vocab_size - 1}")
        if "PICTURE_BOX" in inputs:
            check_picture(inputs, self.fixed["R"])


def check_picture(inputs: Mapping[str, np.ndarray], size: int) -> None:
    """Raise InvalidRequest for boxes that are not on a canvas of `size`, and for statistics that there are not."""
    left, top, right, bottom = inputs["PICTURE_BOX"].T
    if not ((left >= 0) & (left < right) & (right <= size) & (top >= 0) & (top < bottom) & (bottom <= size)).all():
        raise InvalidRequest(
            f"PICTURE_BOX: must be left, top, right, bottom with 0 ≤ left < right ≤ {size}, 0 ≤ top < bottom ≤ {size}"
        )
    chosen = inputs["PIXEL_STATISTICS"]
    if chosen.min() < 0 or chosen.max() >= len(PIXEL_STATISTICS):
        known = ", ".join(f"{index} ({name})" for index, name in enumerate(PIXEL_STATISTICS))
        raise InvalidRequest(f"PIXEL_STATISTICS: must be one of {known}")


def check_magnitude(name: str, array: np.ndarray) -> None:
    """Raise InvalidRequest naming the input for NaN, infinities, and magnitudes above `MAX_MAGNITUDE`.

    Finite values may still overflow inside a stage; the keys that come of them would be NaN in the decoder's caches.
    """
    largest = np.abs(array).max(initial=0.0)
    if not np.isfinite(largest):
        raise InvalidRequest(f"{name}: holds NaN or infinite values")
    if largest > MAX_MAGNITUDE:
        raise InvalidRequest(f"{name}: magnitude {largest:.3g} exceeds the limit of {MAX_MAGNITUDE:g}")


def check_finite(stage: str, outputs: Mapping[str, np.ndarray]) -> None:
    """Raise StageError naming the first output that holds NaN or infinite values: they are never an answer.

    An output that stays on a GPU goes to the decoder, which reports NaN by its scores; it is not fetched for this.
    """
    for name, array in outputs.items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise StageError(f"{stage}: output {name} holds NaN or infinite values")


def _wrong_shape(tensor: TensorSpec, shape: tuple[int, ...], lengths: dict[str, int]) -> InvalidRequest:
    wanted = ", ".join(str(axis if axis == "B" else lengths.get(axis, axis)) for axis in tensor.axes)
    return InvalidRequest(f"{tensor.name}: shape {list(shape)}, but must be [{wanted}]")
