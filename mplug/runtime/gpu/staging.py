"""Keep small tensors in one device allocation with a pinned copy on the host, so that one copy moves them all."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from mplug.runtime.gpu.cuda import ALIGNMENT, Device
from mplug.runtime.room import round_up


class StagedTensors:
    """Several tensors in one device allocation, and pinned host buffers of the same layout."""

    def __init__(
        self, device: Device, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]], host_copies: int = 1
    ) -> None:
        """With several `host_copies`, what was downloaded before can still be read."""
        self._device = device
        offsets: dict[str, int] = {}
        size = 0
        for name, (shape, dtype) in tensors.items():
            offsets[name] = size
            size += round_up(prod(shape) * dtype.itemsize, ALIGNMENT)
        self._buffer = device.allocate(size)
        self._hosts = [device.pinned(size) for _ in range(host_copies)]
        self.addresses = {name: self._buffer.address + offset for name, offset in offsets.items()}
        #: Views of the host buffers, by name.
        self.copies = [
            {
                name: host[offsets[name] : offsets[name] + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
                for name, (shape, dtype) in tensors.items()
            }
            for host in self._hosts
        ]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Views of the first host buffer, by name."""
        return self.copies[0]

    def upload(self) -> None:
        """Copy host to device; the arrays must not change before the next `synchronize`."""
        self._device.upload(self._buffer.address, self._hosts[0])

    def download(self, copy: int = 0) -> None:
        """Copy device to a host buffer; its arrays may be read after the next `synchronize`."""
        self._device.download(self._hosts[copy], self._buffer.address)

    def free(self) -> None:
        """Free all buffers; call it only after all work that uses them."""
        self.copies = []
        for host in self._hosts:
            self._device.free_pinned(host)
        self._buffer.free()
