"""Serve until a signal: watch the server, tell the health port, drain at the end, start again where that is wanted."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mplug.server.health import READY, HealthPort
from mplug.server.install import ServerError
from mplug.server.process import Options, TritonServer
from mplug.server.signals import Signals

WATCH_SECONDS = 0.25  # how often the server's processes are looked at
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a restart; each is twice the one before
STEADY_SECONDS = 600.0  # a server that ran for so long starts the pauses anew


@dataclass
class Supervisor:
    """Runs the server of one command line. `announce`: called with the server and its seconds of loading when ready."""

    repository: Path
    options: Options
    health: HealthPort
    signals: Signals
    announce: Callable[[TritonServer, float], None]
    lame_duck: float = 0.0  # seconds between "not ready" on the health port and the first refused request
    restart: bool = False

    def serve(self) -> int:
        """Serve until a signal and return the exit code.

        Without `restart` a fault ends it with 1. With it, the server starts again after a pause; only a failure of
        the first start, such as a repository that cannot be loaded, ends it.
        """
        pause = FIRST_PAUSE
        ready_once = False
        while True:
            server = TritonServer(self.repository, self.options)
            began = time.monotonic()
            try:
                self._start(server)
                ready_once = True
                fault = self._watch(server)
                if fault is None:
                    return self.drain(server)
            except ServerError as error:
                if self.signals.any():
                    return 0
                fault = str(error)
            finally:
                server.kill()
            if not self.restart or not ready_once:
                return fail(fault)
            if time.monotonic() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE
            print(f"error: {fault}\nstarting again in {pause:.0f} s", file=sys.stderr, flush=True)
            self.signals.wait(pause)
            if self.signals.any():
                return 0
            pause = min(2 * pause, LONGEST_PAUSE)

    def _start(self, server: TritonServer) -> None:
        self.health.state = "starting"
        began = time.monotonic()
        server.start(cancelled=self.signals.any)
        self.options = server.options  # with the ports that were chosen: a restart keeps them
        self.health.state = READY
        self.announce(server, time.monotonic() - began)

    def _watch(self, server: TritonServer) -> str | None:
        """Until a signal (None) or a fault, which is returned; clients' connections are closed then."""
        while not self.signals.any():
            fault = server.fault()
            if fault is not None:
                self.health.state = fault.partition("\n")[0]
                server.kill()
                return fault
            self.signals.wait(WATCH_SECONDS)
        return None

    def drain(self, server: TritonServer) -> int:
        """Not ready first, after the lame duck refuse, then answer what is in flight, then end."""
        self.health.state = "draining"
        until = time.monotonic() + self.lame_duck
        while time.monotonic() < until and not self.signals.several():
            if server.fault() is not None:
                break
            self.signals.wait(WATCH_SECONDS)
        dropped = server.stop(hurry=self.signals.several)
        return fail(f"{dropped} requests were still in flight and were dropped") if dropped else 0


class FaultWatch:
    """Watches a server from a thread while the main one does something else (`--run`); a fault ends the server."""

    def __init__(self, server: TritonServer) -> None:
        self.fault: str | None = None
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self.fault is None and not self._ended.wait(WATCH_SECONDS):
            self.fault = self._server.fault()
        if self.fault is not None:
            self._server.kill()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()


def fail(reason: object) -> int:
    """Print the reason as an error and return exit code 1."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    return 1
