"""Serve a model repository: `python -m mplug.server DIR`.

Runs in the foreground, prints one line with the word `ready` when every model is, and on SIGTERM, SIGINT or
SIGHUP refuses new requests, answers those in flight, and ends with exit code 0; a second signal does not wait
for the rest. Exit code 1 and a clear line when a model fails to load, a port is occupied, DIR is no
repository, or the server ends by itself.

With `--run COMMAND ARGUMENT…` the server takes free ports, runs the command once it is ready, stops, and
exits with the command's exit code. `{grpc}`, `{http}` and `{metrics}` in an argument become HOST:PORT; a
command that is a .py file runs in this interpreter:

    python -m mplug.server build/demo --run clients/caption.py cat.jpg --url {grpc}

Environment: MPLUG_THREADS bounds the threads of a compiled stage (passed on, and OMP_NUM_THREADS follows it
unless it is set itself); OPENBLAS_NUM_THREADS is 1 unless set.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from mplug.server.install import ServerError
from mplug.server.process import CACHE_MB, DRAIN_SECONDS, Options, TritonServer

__all__ = ["Options", "ServerError", "TritonServer", "main"]

HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
CHILD_SUBREAPER = 36  # <linux/prctl.h>
COMMAND_GRACE_SECONDS = 10.0  # that a command of --run has to end when it is asked to


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parse(argv)
    # Stubs of a killed tritonserver become our children, so that they can be waited for anywhere.
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1)
    signals = _Signals()
    server = TritonServer(arguments.repository, _options(arguments))
    began = time.monotonic()
    try:
        server.start(cancelled=signals.any)
    except ServerError as error:
        return 0 if signals.any() else _fail(error)
    seconds = time.monotonic() - began
    # With --run, standard output belongs to the command.
    print(_ready_line(server, seconds), file=sys.stderr if arguments.run else sys.stdout, flush=True)
    try:
        if arguments.run:
            return _run(arguments.run, server, signals)
        while not signals.any():
            if server.exit_code is not None:
                return _fail(server.failure())
            signals.wait(0.2)
        dropped = server.stop(hurry=signals.several)
        return _fail(f"{dropped} requests were still in flight and were dropped") if dropped else 0
    finally:
        server.stop(hurry=signals.several, finalize=not arguments.run)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mplug.server",
        description="Serve a model repository with tritonserver.",
        epilog="Port 0 is any free one. With --run, ports are free ones and the address is 127.0.0.1.",
    )
    parser.add_argument("repository", metavar="DIR", help="what builders/build.py wrote")
    parser.add_argument("--host", help="address to listen on (default: 0.0.0.0, every interface, as Triton does)")
    parser.add_argument("--http-port", type=int, help=f"default: {HTTP_PORT}")
    parser.add_argument("--grpc-port", type=int, help=f"default: {GRPC_PORT}")
    parser.add_argument("--metrics-port", type=int, help=f"default: {METRICS_PORT}")
    parser.add_argument(
        "--cache-mb",
        type=int,
        default=CACHE_MB,
        help="size of the response cache in MiB, 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=DRAIN_SECONDS,
        help="how long requests in flight are waited for at the end (default: %(default)s)",
    )
    parser.add_argument(
        "--model-config-name", metavar="NAME", help="serve configs/NAME.pbtxt of each model that has one"
    )
    parser.add_argument(
        "--log", choices=("warning", "info", "verbose"), default="warning", help="how much tritonserver tells"
    )
    parser.add_argument(
        "--tritonserver",
        default="auto",
        metavar="auto|path|wheel|FILE",
        help="which one: that on the PATH, else the nvidia-pytriton wheel's (auto); or this executable",
    )
    parser.add_argument(
        "--triton-argument",
        action="append",
        default=[],
        metavar="--FLAG=VALUE",
        help="one more flag for tritonserver",
    )
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="run this against the server, then stop; comes last",
    )
    return parser.parse_args(argv)


def _options(arguments: argparse.Namespace) -> Options:
    def port(asked: int | None, default: int) -> int:
        if asked is not None:
            return asked
        return 0 if arguments.run else default

    return Options(
        host=arguments.host or ("127.0.0.1" if arguments.run else "0.0.0.0"),
        http_port=port(arguments.http_port, HTTP_PORT),
        grpc_port=port(arguments.grpc_port, GRPC_PORT),
        metrics_port=port(arguments.metrics_port, METRICS_PORT),
        cache_mb=arguments.cache_mb,
        drain_seconds=arguments.drain_seconds,
        model_config_name=arguments.model_config_name,
        log=arguments.log,
        tritonserver=arguments.tritonserver,
        triton_arguments=tuple(arguments.triton_argument),
    )


def _ready_line(server: TritonServer, seconds: float) -> str:
    return (
        f"ready after {seconds:.1f} s: {', '.join(server.models)} at http://{server.http_url}, "
        f"grpc {server.grpc_url}, metrics http://{server.metrics_url}/metrics"
    )


def _run(command: list[str], server: TritonServer, signals: _Signals) -> int:
    """Run the command to its end; a signal to us ends it too. Returns its exit code, 128 + n for signal n.

    A command that heeds no SIGTERM is killed after `COMMAND_GRACE_SECONDS`, or at the second signal.
    """
    places = {"{grpc}": server.grpc_url, "{http}": server.http_url, "{metrics}": server.metrics_url}
    for place, url in places.items():
        command = [argument.replace(place, url) for argument in command]
    if command[0].endswith(".py"):
        command = [sys.executable, *command]
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        return _fail(f"cannot run {command[0]}: {error.strerror}")
    asked = None  # when the command was asked to end
    while process.poll() is None:
        if signals.any():
            asked = asked or time.monotonic()
            late = signals.several() or time.monotonic() - asked > COMMAND_GRACE_SECONDS
            process.kill() if late else process.terminate()
        signals.wait(0.05)
    if server.exit_code is not None:
        return _fail(server.failure())
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


class _Signals:
    """Counts the signals that ask us to end."""

    def __init__(self) -> None:
        self._count = 0
        self._event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, self._received)

    def _received(self, number: int, frame: object) -> None:
        self._count += 1
        self._event.set()

    def any(self) -> bool:
        return self._count > 0

    def several(self) -> bool:
        return self._count > 1

    def wait(self, seconds: float) -> None:
        """Until the first signal or so many seconds."""
        if self.any():
            time.sleep(seconds)
        else:
            self._event.wait(seconds)


def _fail(reason: object) -> int:
    print(f"error: {reason}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
