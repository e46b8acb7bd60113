"""Keep small tensors in one device allocation with a pinned copy on the host, so that one copy moves them all."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from mplug.runtime.gpu.cuda import ALIGNMENT, Device
from mplug.runtime.room import round_up


class StagedTensors:
    """Several tensors in one device allocation, and a pinned host buffer of the same layout."""

    def __init__(self, device: Device, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        self._device = device
        offsets: dict[str, int] = {}
        size = 0
        for name, (shape, dtype) in tensors.items():
            offsets[name] = size
            size += round_up(prod(shape) * dtype.itemsize, ALIGNMENT)
        self._host, self._buffer = device.pinned(size), device.allocate(size)
        self.addresses = {name: self._buffer.address + offset for name, offset in offsets.items()}
        #: Views of the host buffer, by name.
        self.arrays = {
            name: self._host[offsets[name] : offsets[name] + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for name, (shape, dtype) in tensors.items()
        }

    def upload(self) -> None:
        """Copy host to device; the arrays must not change before the next `synchronize`."""
        self._device.upload(self._buffer.address, self._host)

    def download(self) -> None:
        """Copy device to host; the arrays may be read after the next `synchronize`."""
        self._device.download(self._host, self._buffer.address)

    def free(self) -> None:
        """Free both buffers; call it only after all work that uses them."""
        self.arrays = {}
        self._device.free_pinned(self._host)
        self._buffer.free()
