"""Memory that client and server both map: a large input is written once instead of going through a socket.

Client and server must run on one host, in containers with one IPC namespace. A region has no name in the file
system any more once the server has mapped it, so no file stays behind in /dev/shm, whichever process is killed. The
server keeps what a killed client had registered until it ends.
"""

from __future__ import annotations

import os
import shutil
import struct
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from .errors import ClientError

#: Smaller inputs travel in the request: registering and copying would cost what it saves.
SHARED_FROM = 64 << 10  # bytes
#: Regions that are kept for later requests; more exist only while that many requests are under way.
MAX_REGIONS = 4
_SMALLEST = 1 << 20  # bytes; sizes are powers of two, so that pictures of many sizes fit the same region
_FOLDER = "/dev/shm"
#: How long a connection that closes waits for the server to let go of regions, seconds.
PATIENCE = 10.0
PAUSE = 0.05


def size_of(array: np.ndarray) -> int:
    """Return the bytes that a BYTES tensor takes, each element after its length in four bytes; 0 for other tensors."""
    return sum(4 + len(element) for element in array.flat) if array.dtype == np.object_ else 0


class Region:
    """One region, this process's side. Raises ClientError when there is no room for it."""

    def __init__(self, size: int) -> None:
        # Memory that is written and not there ends the process by SIGBUS, so room is made sure of first.
        if os.path.isdir(_FOLDER) and shutil.disk_usage(_FOLDER).free < size:
            raise ClientError(f"no room for {size >> 20} MiB of shared memory in {_FOLDER}", "RESOURCE_EXHAUSTED")
        try:
            self._memory = SharedMemory(f"mplug-client-{os.getpid()}-{os.urandom(6).hex()}", create=True, size=size)
        except OSError as error:
            raise ClientError(f"no shared memory: {error.strerror}", "RESOURCE_EXHAUSTED") from error
        self.size, self.name, self.key = size, self._memory.name, f"/{self._memory.name}"
        self._has_file = True

    def write(self, array: np.ndarray) -> int:
        """Write a BYTES tensor; returns how many bytes it takes."""
        buffer, end = self._memory.buf, 0
        for element in array.flat:
            struct.pack_into("<I", buffer, end, len(element))
            buffer[end + 4 : end + 4 + len(element)] = element
            end += 4 + len(element)
        return end

    def unlink(self) -> None:
        """Remove its name; it stays for those that have mapped it."""
        if self._has_file:
            self._has_file = False
            self._memory.unlink()

    def close(self) -> None:
        self.unlink()
        self._memory.close()


class Regions:
    """The regions of one connection: those that no request uses at the moment, and those on their way out."""

    def __init__(self) -> None:
        self._free: list[Region] = []
        #: Names that the server has still to unmap: it refuses while it reads one, for instance for a
        #: request whose client did not wait for the answer.
        self.leaving: list[str] = []

    def take(self, size: int) -> Region | None:
        """Return the smallest free region of at least `size` bytes, or None."""
        fitting = [region for region in self._free if region.size >= size]
        if not fitting:
            return None
        region = min(fitting, key=lambda each: each.size)
        self._free.remove(region)
        return region

    def give(self, region: Region) -> None:
        """Keep a region for later requests; of more than `MAX_REGIONS`, the smallest is dropped."""
        self._free.append(region)
        if len(self._free) > MAX_REGIONS:
            smallest = min(self._free, key=lambda each: each.size)
            self._free.remove(smallest)
            self.give_up(smallest)

    def give_up(self, region: Region) -> None:
        """Drop a region: it is never written to again."""
        region.close()
        self.leaving.append(region.name)

    def give_up_all(self) -> None:
        """Drop all regions that no request uses."""
        while self._free:
            self.give_up(self._free.pop())

    @staticmethod
    def create(size: int) -> Region:
        """Return a new region of at least `size` bytes."""
        return Region(max(_SMALLEST, 1 << (size - 1).bit_length()))
