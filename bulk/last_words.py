"""A line for a run that ends without one.

When Ray is gone, its C++ ends the driver after a minute from within, with no exception and nothing on standard error;
the kernel does so at once when memory runs out. A process beside the driver says it then.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

_LINE = (
    "error: the run has ended without saying why, as when it is killed, or Ray is, or memory is full; start the same "
    "command again: rows that are in files are kept"
)
#: Standard input ends when the driver does, however that comes about; after a byte there is nothing to be said.
_WATCH = f"import sys\nif not sys.stdin.buffer.read(1): print({_LINE!r}, file=sys.stderr)"


@contextlib.contextmanager
def said_at_a_sudden_end(descriptor: int) -> Iterator[None]:
    """Have the line written to an open descriptor if this process ends before the block does."""
    command = [sys.executable, "-I", "-S", "-c", _WATCH]
    # A session of its own: Ctrl-C in a terminal is the driver's to answer.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=descriptor, start_new_session=True) as watch:
        try:
            yield
        finally:
            watch.communicate(b".")
