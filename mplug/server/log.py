"""What tritonserver and its models print: passed on, less the harmless, and the last of it remembered."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import deque

#: What tritonserver says on every machine without a GPU, and at every end; nobody can do anything about it.
HARMLESS = re.compile(
    r"Failed to initialize NVML|DCGM unable to start|CudaDriverHelper has not been initialized|"
    r"Unable to allocate pinned system memory|Signal \(\d+\) received|"
    r"Exit timeout expired\. Exiting immediately|Non-graceful termination detected"
)
STOPPING = re.compile(r"Signal \((\d+)\) received")
COMPLAINT = re.compile(r"E\d{4} |error:|\[libprotobuf ERROR")
KEPT_LINES = 200


class ServerLog:
    """Copies tritonserver's output to standard error and keeps its last lines."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._thread: threading.Thread | None = None
        self.stopping_signal: int | None = None  # tritonserver has received this signal and stops its models

    def follow(self, process: subprocess.Popen[str]) -> None:
        """Read the process's standard output, in a thread, until it ends."""
        self._thread = threading.Thread(target=self._pump, args=(process,), name="tritonserver-log", daemon=True)
        self._thread.start()

    def _pump(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout:
            stopping = STOPPING.search(line)
            if stopping:
                self.stopping_signal = int(stopping[1])
            if not HARMLESS.search(line):
                self._lines.append(line.rstrip())
                sys.stderr.write(line)
                sys.stderr.flush()

    def complaints(self, about: str = "") -> list[str]:
        """Return the last few error lines that contain `about`, without their prefix of time and place."""
        errors = [line for line in self._lines if COMPLAINT.match(line)]
        return [re.sub(r"^E\d{4} \S+ \d+ \S+\] ", "", line) for line in errors if about in line][-5:]

    def join(self) -> None:
        """Wait until everything that was printed has been read; 5 s at most."""
        if self._thread is not None:
            self._thread.join(5)
