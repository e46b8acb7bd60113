"""Serve a model repository: `python -m mplug.server DIR`.

Runs in the foreground and prints one line with the word `ready` when every model is. On SIGTERM, SIGINT or SIGHUP its
health port answers not ready; after `--lame-duck` seconds it refuses new requests, answers those in flight, and ends
with exit code 0; a second signal does not wait for the rest. Exit code 1 and a clear line when a model fails to load, a
port is occupied, DIR is no repository, or tritonserver or the process of a model has died; with `--restart` such a
server is started again, after pauses that grow.

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
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mplug.server.health import READY, READY_PATH, HealthPort
from mplug.server.install import ServerError
from mplug.server.process import CACHE_MB, DRAIN_SECONDS, Options, TritonServer
from mplug.server.signals import Signals
from mplug.server.supervise import FaultWatch, Supervisor, fail
from mplug.tracing import TRACES_PATH, TracingError, asked_endpoint, checked_endpoint

__all__ = ["Options", "ServerError", "TritonServer", "main"]

HTTP_PORT, GRPC_PORT, METRICS_PORT, HEALTH_PORT = 8000, 8001, 8002, 8003
LOOPBACK = "127.0.0.1"
CHILD_SUBREAPER = 36  # <linux/prctl.h>
MOST_CLIENTS = 1024  # that --tune-for plays: a thread each
COMMAND_GRACE_SECONDS = 10.0  # that a command of --run has to end when it is asked to


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _parse(argv)
    # Stubs of a killed tritonserver become our children, so that they can be waited for anywhere.
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1)
    signals = Signals()
    options = _options(arguments)
    if not _is_loopback(options.host):
        print(
            f"warning: listening on {options.host}: a single request can end a tritonserver that anybody reaches; "
            "put the gateway in front of it (make gateway, docs/security.md)",
            file=sys.stderr,
            flush=True,
        )
    try:
        if arguments.tune_for is not None:
            _tune(arguments, signals)
        health_port = _port(arguments.health_port, HEALTH_PORT, arguments)
        with HealthPort(options.host, health_port) as health:
            if arguments.run:
                return _serve_for(arguments.run, TritonServer(arguments.repository, options), health, signals)
            supervisor = Supervisor(
                repository=Path(arguments.repository),
                options=options,
                health=health,
                signals=signals,
                announce=lambda server, seconds: print(_ready_line(server, health, seconds), flush=True),
                lame_duck=arguments.lame_duck,
                restart=arguments.restart,
            )
            return supervisor.serve()
    except ServerError as error:
        return 0 if signals.any() else fail(error)


def _tune(arguments: argparse.Namespace, signals: Signals) -> None:
    """Set the threads of a stage to what serves so many clients best; MPLUG_THREADS bounds what is tried."""
    # Here, because a start without it needs neither numpy nor Pillow.
    from mplug.runtime.interface import THREADS_VARIABLE, RuntimeUnavailable, threads
    from mplug.server import tune

    try:
        most = threads()
    except RuntimeUnavailable as error:
        raise ServerError(str(error)) from error
    load = tune.Load(arguments.tune_for)
    alone = {"host": LOOPBACK, "http_port": 0, "grpc_port": 0, "metrics_port": 0, "trace_endpoint": None}
    options = replace(_options(arguments), **alone, allow_shared_memory=False)

    def rate(number: int) -> float:
        os.environ[THREADS_VARIABLE] = str(number)
        server = TritonServer(arguments.repository, options)
        try:
            server.start(cancelled=signals.any)
            return tune.answers_per_second(server.http_url, server.models, load, signals.any)
        finally:
            server.kill()

    os.environ[THREADS_VARIABLE] = str(tune.tuned_threads(most, load, rate))


def _serve_for(command: list[str], server: TritonServer, health: HealthPort, signals: Signals) -> int:
    """Serve for as long as a command runs; returns its exit code."""
    began = time.monotonic()
    try:
        server.start(cancelled=signals.any)
        health.state = READY
        # Standard output belongs to the command.
        print(_ready_line(server, health, time.monotonic() - began), file=sys.stderr, flush=True)
        watch = FaultWatch(server)
        try:
            code = _run(command, server, signals, watch)
        finally:
            watch.end()
        if watch.fault is None:
            server.stop(hurry=signals.several)
        return code
    finally:
        server.kill()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mplug.server",
        description="Serve a model repository with tritonserver.",
        epilog="Port 0 is any free one. With --run, ports are free ones and the address is 127.0.0.1.",
    )
    parser.add_argument("repository", metavar="DIR", help="what builders/build.py wrote")
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        help="address to listen on (default: %(default)s, this machine alone); others belong behind the gateway",
    )
    parser.add_argument("--http-port", type=int, help=f"default: {HTTP_PORT}")
    parser.add_argument("--grpc-port", type=int, help=f"default: {GRPC_PORT}")
    parser.add_argument("--metrics-port", type=int, help=f"default: {METRICS_PORT}")
    parser.add_argument(
        "--health-port",
        type=int,
        help=f"the launcher's /health/live and /health/ready, for balancers (default: {HEALTH_PORT})",
    )
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
        "--lame-duck",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="at the end, how long to go on taking requests after the health port says not ready: "
        "behind a balancer more than it needs to see that, 5 behind ours (default: 0)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="start again, after growing pauses, when a process has died"
    )
    parser.add_argument(
        "--allow-shared-memory",
        action="store_true",
        help="let clients of this user pass inputs through shared memory, with a key from a file only they can read",
    )
    parser.add_argument(
        "--tune-for",
        type=_clients,
        metavar="CLIENTS",
        help="first measure with how many threads a stage so many clients at once are answered quickest, and serve "
        "with that; half a minute for each number that is tried: all cores, half of them, and so on",
    )
    parser.add_argument(
        "--model-config-name", metavar="NAME", help="serve configs/NAME.pbtxt of each model that has one"
    )
    parser.add_argument(
        "--log", choices=("warning", "info", "verbose"), default="warning", help="how much tritonserver tells"
    )
    parser.add_argument(
        "--trace-endpoint",
        type=_endpoint,
        default=asked_endpoint(os.environ),
        metavar="URL",
        help="send OpenTelemetry spans of each request there, OTLP over HTTP, as in "
        f"http://127.0.0.1:4318{TRACES_PATH} (default: what OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or "
        "OTEL_EXPORTER_OTLP_ENDPOINT says, else nowhere)",
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


def _endpoint(text: str) -> str:
    try:
        return checked_endpoint(text)
    except TracingError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _clients(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_CLIENTS:
        raise argparse.ArgumentTypeError(f"{text} is not a number of clients, 1 to {MOST_CLIENTS}")
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, 0 or more")
    return value


def _port(asked: int | None, default: int, arguments: argparse.Namespace) -> int:
    """The port to use; 0, any free one, where none was asked for and a command is to be run."""
    if asked is not None:
        return asked
    return 0 if arguments.run else default


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        host=arguments.host,
        http_port=_port(arguments.http_port, HTTP_PORT, arguments),
        grpc_port=_port(arguments.grpc_port, GRPC_PORT, arguments),
        metrics_port=_port(arguments.metrics_port, METRICS_PORT, arguments),
        cache_mb=arguments.cache_mb,
        drain_seconds=arguments.drain_seconds,
        allow_shared_memory=arguments.allow_shared_memory,
        model_config_name=arguments.model_config_name,
        log=arguments.log,
        trace_endpoint=arguments.trace_endpoint,
        tritonserver=arguments.tritonserver,
        triton_arguments=tuple(arguments.triton_argument),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ready_line(server: TritonServer, health: HealthPort, seconds: float) -> str:
    health_host = server.http_url.rpartition(":")[0]
    line = (
        f"ready after {seconds:.1f} s: {', '.join(server.models)} at http://{server.http_url}, "
        f"grpc {server.grpc_url}, metrics http://{server.metrics_url}/metrics, "
        f"health http://{health_host}:{health.port}{READY_PATH}"
    )
    keys = server.keys.files
    if keys:
        line += f"; shared memory is open to clients of this user, with the key in {' and '.join(map(str, keys))}"
    return line


def _run(command: list[str], server: TritonServer, signals: Signals, watch: FaultWatch) -> int:
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
        return fail(f"cannot run {command[0]}: {error.strerror}")
    asked = None  # when the command was asked to end
    while process.poll() is None:
        if signals.any():
            asked = asked or time.monotonic()
            late = signals.several() or time.monotonic() - asked > COMMAND_GRACE_SECONDS
            process.kill() if late else process.terminate()
        signals.wait(0.05)
    if watch.fault is not None:
        return fail(watch.fault)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main())
