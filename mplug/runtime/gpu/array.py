"""An array in a GPU's memory that goes from stage to stage as it is: DLPack in and out, views without a copy.

NumPy reads one through `__array__`, which copies it to the host, so that what computes there takes either kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np

from mplug.runtime.gpu.cuda import Buffer, Device
from mplug.runtime.gpu.dlpack import CUDA, borrow, capsule, on_gpu


@cache
def own_device(index: int = 0) -> Device:
    """Return a device of a process without an engine of its own. Raises RuntimeUnavailable without that GPU."""
    return Device(index)


class DeviceArray:
    """C-contiguous, and complete: whatever wrote it was waited for."""

    def __init__(self, device: Device, memory: Buffer, shape: Sequence[int], dtype: np.dtype, offset: int = 0) -> None:
        self._device, self._memory, self._offset = device, memory, offset
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)

    @classmethod
    def copied(cls, device: Device, address: int, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
        """Copy, on the device, what lies at `address` once the device's work is done."""
        size = prod(shape) * np.dtype(dtype).itemsize
        memory = device.allocate(size)
        device.copy(memory.address, address, size)
        device.synchronize()
        return cls(device, memory, shape, dtype)

    @classmethod
    def received(cls, tensor: Any) -> DeviceArray:
        """Copy what another process or library left on the device: a DLPack capsule, or an object that gives one.

        Raises ValueError for memory that is not contiguous, or of a type that numpy has not.
        """
        with borrow(tensor) as borrowed:
            return cls.copied(own_device(borrowed.index), borrowed.address, borrowed.shape, np.dtype(borrowed.dtype))

    @property
    def address(self) -> int:
        return self._memory.address + self._offset

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def copy(self) -> DeviceArray:
        """Return a copy on the device, in memory of its own."""
        return DeviceArray.copied(self._device, self.address, self.shape, self.dtype)

    def reshape(self, *shape: int) -> DeviceArray:
        """Return the same memory in another shape; one length may be −1."""
        known = prod(length for length in shape if length != -1)
        whole = tuple(prod(self.shape) // known if length == -1 else length for length in shape)
        if prod(whole) != prod(self.shape):
            raise ValueError(f"an array of shape {self.shape} cannot be reshaped to {shape}")
        return DeviceArray(self._device, self._memory, whole, self.dtype, self._offset)

    def __getitem__(self, index: int | slice | None) -> DeviceArray:
        """Return one index or a slice of the first axis; None adds an axis in front."""
        if index is None:
            return self.reshape(1, *self.shape)
        start, stop, step = (index if isinstance(index, slice) else slice(index, index + 1)).indices(len(self))
        if step != 1 or (isinstance(index, int) and not 0 <= index < len(self)):
            raise IndexError(f"{index} of an array of shape {self.shape} on the device")
        rest = self.shape[1:]
        shape = rest if isinstance(index, int) else (max(0, stop - start), *rest)
        return DeviceArray(
            self._device, self._memory, shape, self.dtype, self._offset + start * prod(rest) * self.dtype.itemsize
        )

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Copy to the host."""
        staging = self._device.pinned(self.nbytes)
        try:
            self._device.download(staging[: self.nbytes], self.address)
            self._device.synchronize()
            array = staging[: self.nbytes].view(self.dtype).reshape(self.shape).copy()
        finally:
            self._device.free_pinned(staging)
        return array if dtype is None else array.astype(dtype)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._device.index

    def __dlpack__(self, stream: Any = None) -> Any:
        """Return a capsule, which keeps the memory alive for as long as the consumer holds it."""
        return capsule(self.address, self.shape, self.dtype.name, keep=self._memory, index=self._device.index)


def concatenated(arrays: Sequence[np.ndarray | DeviceArray]) -> np.ndarray | DeviceArray:
    """Concatenate arrays along the first axis; on the device if all of them lie there."""
    if not all(isinstance(array, DeviceArray) for array in arrays):
        return np.concatenate([np.asarray(array) for array in arrays])
    first = arrays[0]
    if {(array.shape[1:], array.dtype) for array in arrays} != {(first.shape[1:], first.dtype)}:
        raise ValueError(f"arrays of shapes {[array.shape for array in arrays]} cannot be concatenated")
    device = first._device
    memory = device.allocate(sum(array.nbytes for array in arrays))
    offset = 0
    for array in arrays:
        device.copy(memory.address + offset, array.address, array.nbytes)
        offset += array.nbytes
    device.synchronize()
    return DeviceArray(device, memory, (sum(map(len, arrays)), *first.shape[1:]), first.dtype)


__all__ = ["DeviceArray", "concatenated", "on_gpu", "own_device"]
