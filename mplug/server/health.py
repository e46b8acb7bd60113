"""The launcher's own health port, for balancers and orchestrators.

`GET /health/live` is 200 while the launcher runs. `GET /health/ready` is 200 while the server takes requests and 503
otherwise, with the reason as the body's one line: while models load, from the first moment of a drain on, and when a
model process has died. tritonserver's own `/v2/health/ready` stays 200 in the last two.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mplug.server.install import ServerError

LIVE_PATH, READY_PATH = "/health/live", "/health/ready"
READY = "ready"
READ_SECONDS = 5.0  # for a request's header to arrive


class HealthPort:
    """Answers on HOST:PORT from a thread; `state` is what it says. As a context manager it ends the thread.

    Raises ServerError when the port cannot be bound. Port 0 is any free one.
    """

    def __init__(self, host: str, port: int) -> None:
        self.state = "starting"
        try:
            self._server = _Server((host, port), _handler(self))
        except OSError as error:
            raise ServerError(
                f"health port {port} on {host} cannot be opened ({error.strerror}): "
                "end what uses it or choose another --health-port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_address[1]

    def __enter__(self) -> HealthPort:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is no news."""


def _handler(health: HealthPort) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = READ_SECONDS

        def do_GET(self) -> None:
            if self.path == LIVE_PATH:
                status, said = 200, "live"
            elif self.path == READY_PATH:
                said = health.state
                status = 200 if said == READY else 503
            else:
                status, said = 404, f"only {LIVE_PATH} and {READY_PATH} are here"
            body = f"{said}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Checks come every second; they are not logged."""

    return Handler
