"""The end of a gateway: Envoy asks its clients to go elsewhere, answers what is in flight, and is then ended.

Clients learn it from GOAWAY (HTTP/2), or from `connection: close` on an answer (HTTP/1.1). Connections are taken until
the end: whoever has not heard that this gateway goes is still answered.
"""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

DRAIN_SECONDS = 30.0
IDLE_SECONDS = 1.0  # without a request: what was on its way has come
_ACTIVE = re.compile(r"^http\.(?:http|grpc)\.downstream_rq_active: (\d+)$", re.MULTILINE)


class Admin(http.client.HTTPConnection):
    """Envoy's own pages, on a Unix socket or a port of 127.0.0.1."""

    def __init__(self, place: Path | int) -> None:
        super().__init__("127.0.0.1", place if isinstance(place, int) else 0, timeout=5)
        self._socket = None if isinstance(place, int) else place

    def connect(self) -> None:
        """Connect. Raises OSError where nobody listens."""
        if self._socket is None:
            super().connect()
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._socket))

    def ask(self, method: str, path: str) -> str:
        """Return the answer's text. Raises OSError or HTTPException where Envoy does not answer."""
        try:
            self.request(method, path)
            return self.getresponse().read().decode()
        finally:
            self.close()


def end(
    process: subprocess.Popen[bytes],
    admin: Path | int,
    seconds: float = DRAIN_SECONDS,
    hurry: Callable[[], bool] = lambda: False,
) -> int:
    """Drain Envoy for at most `seconds` and end it; returns its exit code, 0 where SIGTERM ended it.

    `hurry`: asked while draining; True gives up the rest of the wait.
    """
    deadline = time.monotonic() + seconds
    try:
        Admin(admin).ask("POST", "/drain_listeners?graceful")
        idle_since = None
        while time.monotonic() < deadline and process.poll() is None and not hurry():
            counts = _ACTIVE.findall(Admin(admin).ask("GET", "/stats?filter=downstream_rq_active"))
            if any(map(int, counts)):
                idle_since = None
            elif idle_since is None:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > IDLE_SECONDS:
                break
            time.sleep(0.1)
    except (OSError, http.client.HTTPException):
        pass  # it has ended, or never began
    if process.poll() is None:
        process.terminate()
    code = process.wait()
    return 0 if code == -signal.SIGTERM else code
