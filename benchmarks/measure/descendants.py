"""Everything that this process has started, orphans included: to be waited for, and its CPU time."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from types import TracebackType

import psutil

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
SAMPLE_SECONDS = 0.1


@contextlib.contextmanager
def adopted() -> Iterator[None]:
    """Make processes whose parent ends children of this one: Ray's are not ended by the end of its driver."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


def descendants() -> list[psutil.Process]:
    """Return all that run now."""
    return psutil.Process().children(recursive=True)


def wait_for_all(seconds: float) -> None:
    """Wait until every descendant has ended. Raises TimeoutError when one takes longer."""
    _, left = psutil.wait_procs(descendants(), seconds)
    if left:
        raise TimeoutError(f"{' '.join(left[0].cmdline()[:3])} still runs after {seconds:g} s")


class CpuTimes:
    """Sums user and system seconds of all descendants while it is open.

    Each process is read ten times a second; what it spends after the last look at it is not seen.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, float], float] = {}  # of each process, by id and start
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cpu times", daemon=True)

    def __enter__(self) -> CpuTimes:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def seconds(self) -> float:
        """Return what all descendants have spent since it was opened."""
        self._look()
        with self._lock:
            return sum(self._seconds.values())

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        for process in descendants():
            try:
                times, started = process.cpu_times(), process.create_time()
            except psutil.Error:
                continue  # it has just ended
            with self._lock:
                self._seconds[process.pid, started] = times.user + times.system
