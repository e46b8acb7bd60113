"""Put a process's large arrays on huge pages, so that reading weights waits less for page tables.

A step of few sequences reads every weight of the decoder once. In pages of 4 KiB the processor looks one up every few
hundred nanoseconds, and in a virtual machine each look-up is two.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator
from pathlib import Path

#: <linux/mman.h>, since Linux 6.1: collapse into huge pages at once, whatever the system does by itself.
MADV_COLLAPSE = 25
HUGE_PAGE = 2 << 20  # bytes
#: Part of a mapping that must be in memory: collapsing fills the holes of others, a thread's stack for example.
LEAST_RESIDENT = 0.9
SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+\s*(.*)")


_running: list[threading.Thread] = []


def collapse_aside() -> None:
    """Collapse in a thread of its own: it takes up to a second, for which no request waits."""
    _running[:] = [thread for thread in _running if thread.is_alive()]
    _running.append(threading.Thread(target=collapse, name="huge-pages", daemon=True))
    _running[-1].start()


def wait() -> None:
    """Wait for what `collapse_aside` began: work beside it is slower."""
    for thread in list(_running):
        thread.join()


def collapse() -> int:
    """Collapse what this process has allocated in large pieces; returns the bytes now on huge pages because of it.

    0 where the kernel does not know how (before 6.1) or has no huge pages left.
    """
    library = ctypes.CDLL(None)
    collapsed = 0
    for begin, end in list(_large_arrays(SMAPS.read_text() if SMAPS.exists() else "")):
        if library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_COLLAPSE) == 0:
            collapsed += end - begin
    return collapsed


def _large_arrays(smaps: str) -> Iterator[tuple[int, int]]:
    """Yield first and end address of the whole huge pages of anonymous, writable mappings that are in memory."""
    begin = end = 0
    for line in smaps.splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            anonymous = mapping[3] == "rw-p" and mapping[4] in ("", "[heap]")
            begin, end = (int(mapping[1], 16), int(mapping[2], 16)) if anonymous else (0, 0)
        elif line.startswith("Rss:") and int(line.split()[1]) * 1024 >= LEAST_RESIDENT * (end - begin):
            first, last = -(-begin // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
            if first < last:
                yield first, last
