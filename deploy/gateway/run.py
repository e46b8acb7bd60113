"""Run the gateway: Envoy in front of one or more mplug.server.

    python deploy/gateway/run.py --server 127.0.0.1:8000:8001:8003 [--server …] [--host 0.0.0.0] [--api-keys FILE]
        [--certificate FILE --private-key FILE]

Runs in the foreground. On SIGTERM or SIGINT it asks its clients to go elsewhere, answers what is in flight, and ends; a
second signal does not wait for the rest. Envoy comes from deploy/gateway/requirements.txt, or is any
`envoy` on the PATH or named with --envoy. Environment: MPLUG_GATEWAY_SERVERS (spaces between), MPLUG_GATEWAY_API_KEYS,
MPLUG_GATEWAY_CERTIFICATE and MPLUG_GATEWAY_PRIVATE_KEY stand for the options of these names.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from deploy.gateway.configuration import Gateway, Server, configuration
from deploy.gateway.drain import DRAIN_SECONDS, end

PDEATHSIG = 1  # <linux/prctl.h>
POLL_SECONDS = 0.2  # between looks whether it has ended or is to end
SHORTEST_KEY = 16  # characters


class GatewayError(RuntimeError):
    """The gateway cannot be run; the message is one line for a person."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _parse(argv)
    try:
        gateway = _gateway(arguments)
        envoy = find_envoy(arguments.envoy)
    except GatewayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not gateway.api_keys and not gateway.host.startswith("127."):
        print(f"warning: listening on {gateway.host} without --api-keys: open to all", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="mplug-gateway-") as folder:
        path = Path(folder) / "envoy.json"
        if gateway.admin is None:
            gateway = replace(gateway, admin=Path(folder) / "admin")
        write(gateway, path)
        asked: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda received, _: asked.append(received))
        process = start(envoy, path)
        while process.poll() is None and not asked:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        code = end(process, gateway.admin, arguments.drain_seconds, hurry=lambda: len(asked) > 1)
    return 0 if asked and code == 0 else 1


def start(envoy: Sequence[str], path: Path, concurrency: int | None = None) -> subprocess.Popen[bytes]:
    """Start Envoy on a configuration file; it ends with the thread that started it."""
    libc = ctypes.CDLL(None)
    threads = concurrency or min(4, len(os.sched_getaffinity(0)))
    command = [
        *envoy,
        "-c",
        str(path),
        "--concurrency",
        str(threads),
        "--disable-hot-restart",
        "--drain-strategy",
        "immediate",  # clients hear of a drain with their next answer
        "--log-level",
        "warning",
    ]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches us alone
        preexec_fn=lambda: libc.prctl(PDEATHSIG, signal.SIGTERM),
    )


def write(gateway: Gateway, path: Path) -> None:
    """Write Envoy's configuration to a new file that only this user reads: it holds the API keys."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(configuration(gateway), file, indent=1)


def find_envoy(choice: str | None) -> list[str]:
    """Return the command of Envoy: `choice`, the package's beside this interpreter, or one on the PATH.

    Raises GatewayError where there is none.
    """
    beside = Path(sys.executable).parent / "envoy"
    for candidate in (choice,) if choice else (str(beside), "envoy"):
        found = shutil.which(candidate)
        if found:
            return [found]
    raise GatewayError(
        f"no Envoy {f'at {choice}' if choice else 'found'}: pip install -r deploy/gateway/requirements.txt, "
        "or name one with --envoy"
    )


def read_keys(path: Path) -> tuple[tuple[str, str], ...]:
    """Read API keys: lines of NAME KEY; empty lines and lines that begin with # are skipped.

    Raises GatewayError for a file that others may read, and for a line that is no key.
    """
    try:
        if path.stat().st_mode & 0o007:
            raise GatewayError(f"{path} can be read by everybody: chmod o= {path}")
        lines = path.read_text().splitlines()
    except OSError as error:
        raise GatewayError(f"{path}: {error.strerror}") from error
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or len(words[1]) < SHORTEST_KEY:
            raise GatewayError(f"{path}, line {number}: not NAME KEY with a key of {SHORTEST_KEY} characters or more")
        keys.append((words[0], words[1]))
    if not keys:
        raise GatewayError(f"{path} holds no keys: lines of NAME KEY")
    return tuple(keys)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    environment = os.environ.get
    parser = argparse.ArgumentParser(description="Run Envoy in front of one or more mplug.server.")
    parser.add_argument("--server", action="append", metavar="HOST:HTTP:GRPC:HEALTH", help="once for each server")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--http-port", type=int, default=Gateway.http_port, help="default: %(default)s")
    parser.add_argument("--grpc-port", type=int, default=Gateway.grpc_port, help="default: %(default)s")
    parser.add_argument("--admin-port", type=int, help="Envoy's own pages, on 127.0.0.1; none unless given")
    parser.add_argument(
        "--certificate", type=Path, default=environment("MPLUG_GATEWAY_CERTIFICATE"), help="PEM, for TLS"
    )
    parser.add_argument("--private-key", type=Path, default=environment("MPLUG_GATEWAY_PRIVATE_KEY"), help="PEM")
    parser.add_argument(
        "--api-keys",
        type=Path,
        default=environment("MPLUG_GATEWAY_API_KEYS"),
        metavar="FILE",
        help="lines of NAME KEY; requests then need a key in the header x-api-key",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=DRAIN_SECONDS,
        help="how long requests in flight are waited for at the end (default: %(default)s)",
    )
    parser.add_argument("--envoy", help="Envoy's executable (default: the package's, else the PATH's)")
    return parser.parse_args(argv)


def _gateway(arguments: argparse.Namespace) -> Gateway:
    texts = arguments.server or os.environ.get("MPLUG_GATEWAY_SERVERS", "").split()
    if not texts:
        raise GatewayError("no server: give --server HOST:HTTP:GRPC:HEALTH, as in 127.0.0.1:8000:8001:8003")
    try:
        servers = tuple(map(Server.parse, texts))
    except ValueError as error:
        raise GatewayError(str(error)) from error
    if (arguments.certificate is None) != (arguments.private_key is None):
        raise GatewayError("TLS needs both --certificate and --private-key")
    for path in filter(None, (arguments.certificate, arguments.private_key)):
        if not Path(path).is_file():
            raise GatewayError(f"{path} is not a file")
    return Gateway(
        servers=servers,
        host=arguments.host,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        admin=arguments.admin_port,
        certificate=arguments.certificate and Path(arguments.certificate).absolute(),
        private_key=arguments.private_key and Path(arguments.private_key).absolute(),
        api_keys=read_keys(Path(arguments.api_keys)) if arguments.api_keys else (),
    )


if __name__ == "__main__":
    sys.exit(main())
