"""How the launcher and the served models agree on a drain.

tritonserver cannot be told to refuse new work and finish the rest, so the two do it between them: the launcher
(`mplug.server.process`) sets a byte in a file that both have mapped, the task models (`mplug.triton.models`) refuse
requests from then on, and a metric tells the launcher how many are still being answered. The file gets its one block
when the server starts: a disk that is full at the end does not keep a server from draining. A server started without
our launcher has no such file and never refuses.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

DRAIN_FILE_VARIABLE = "MPLUG_DRAIN_FILE"  # the file's path, in the environment of the served models
IN_FLIGHT_METRIC = "mplug_requests_in_flight"  # gauge, one per model
SERVE, REFUSE, DROP = 0, 1, 2  # the byte: answer everything; finish what is in flight; give that up, too

_mapped: DrainState | None = None  # of this process


class DrainState:
    """The shared byte. The launcher creates it; the models open what `DRAIN_FILE_VARIABLE` names."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 1)

    @classmethod
    def create(cls, path: Path) -> DrainState:
        """Make the file, in the state `SERVE`. Raises OSError when there is no room for it."""
        path.write_bytes(bytes([SERVE]))
        return cls(path)

    def set(self, state: int) -> None:
        """Change the state for all processes; needs no room on the disk."""
        self._memory[0] = state

    def get(self) -> int:
        """Return the state: `SERVE`, `REFUSE` or `DROP`."""
        return self._memory[0]


def _state() -> int:
    global _mapped
    if _mapped is None:
        path = os.environ.get(DRAIN_FILE_VARIABLE)
        if path is None:
            return SERVE
        _mapped = DrainState(Path(path))
    return _mapped.get()


def draining() -> bool:
    """Return whether new requests are to be refused."""
    return _state() != SERVE


def dropping() -> bool:
    """Return whether requests in flight are to be answered with an error at once: their time is over."""
    return _state() == DROP
