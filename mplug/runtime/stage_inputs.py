"""What may be sent straight to an encoding stage: checked one by one, before requests share a batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mplug.contract import ENCODERS, GraphSpec, TensorSpec
from mplug.errors import InvalidRequest
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
        """From a built stage's folder."""
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
                    f"{tensor.name}: {lengths['L']} tokens are more than the {self.max_text_length} allowed"
                )
        ids = inputs.get("INPUT_IDS")
        if ids is not None and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise InvalidRequest(f"INPUT_IDS: ids must be 0…{self.vocab_size - 1}")


def _wrong_shape(tensor: TensorSpec, shape: tuple[int, ...], lengths: dict[str, int]) -> InvalidRequest:
    wanted = ", ".join(str(axis if axis == "B" else lengths.get(axis, axis)) for axis in tensor.axes)
    return InvalidRequest(f"{tensor.name}: shape {list(shape)}, but must be [{wanted}]")
