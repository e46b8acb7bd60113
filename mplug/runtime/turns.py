"""Stages that compute with all cores take turns on them.

Each stage is a process of its own. Two that compute at the same time, each with a thread per core, share every
core, and at each of the hundreds of parallel sections of a graph the threads of both wait for the one that was
put aside. One after the other, each runs at its full speed: a run of an encoder, then a step of the decoder.
"""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

from mplug.runtime.interface import threads


class Turn:
    """`with turn:` holds the cores. Not reentrant, and of one thread at a time.

    A lock on the folder itself: it needs no file that is written, is held by nobody once its process has died,
    and binds all who serve the same repository.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError where folders cannot be locked."""
        self._descriptor = -1
        self._descriptor = os.open(folder, os.O_RDONLY)
        with suppress(BlockingIOError):  # somebody has the turn now: locks work
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def __enter__(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def turn_of(repository: Path) -> AbstractContextManager[None]:
    """The turn that a stage of this repository takes for each run.

    None is needed where the cores are enough for two stages side by side (MPLUG_THREADS).
    """
    if 2 * threads() <= len(os.sched_getaffinity(0)):
        return nullcontext()
    try:
        return Turn(repository)
    except OSError as error:
        print(f"{repository}: cannot be locked ({error}): stages compute at the same time", file=sys.stderr)
        return nullcontext()
