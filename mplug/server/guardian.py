"""A process that outlives a killed launcher by moments: it ends the server and removes what would stay behind.

    python guardian.py SCRATCH SHARED_MEMORY_PREFIX      standard input: a pipe from the launcher

The launcher writes one line with tritonserver's process group once that runs. When the pipe ends without the line
`done`, the launcher has died: the group is killed, and the server's shared memory and scratch directory are removed.
Killed and not asked to end: a tritonserver that stops on its own answers NOT_FOUND for seconds, which no balancer
repeats.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

GROUP_SECONDS = 5.0  # for a killed group to be gone


def main(scratch: str, prefix: str) -> None:
    """Wait for the launcher's end, and clean up after it unless it says that it did so itself."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what ends the launcher is often sent to all
    group = None
    for line in sys.stdin:
        if line == "done\n":
            return
        group = int(line)
    deadline = time.monotonic() + GROUP_SECONDS
    while group is not None and time.monotonic() < deadline:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    for left_over in Path("/dev/shm").glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            left_over.unlink()
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
