"""Several mplug.server on this machine behind one gateway.

    python deploy/gateway/cluster.py DIR --servers 2 --envoy ENVOY [--host …] [--http-port 9000] [--grpc-port 9001]

Starts the servers on free ports, then the gateway, and prints one line containing `ready`. SIGHUP replaces the servers
one after the other; SIGTERM and SIGINT drain them in their order and then end the gateway, with exit code 0. A server
that dies is started again. Environment: MPLUG_THREADS, a server's threads, is its share of the cores unless it is set.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy.gateway.configuration import Gateway, Server
from deploy.gateway.run import GatewayError, find_envoy, start, write

CHECKOUT = Path(__file__).resolve().parents[2]
LAME_DUCK_SECONDS = 5.0  # more than the gateway's checks need to notice
NOTICE_SECONDS = 3.0  # for the gateway's checks to find a server that is ready again, before the next one goes
DRAIN_SECONDS = 30.0
START_SECONDS = 900.0
GATEWAY_SECONDS = 30.0  # for the gateway's first checks
_READY_LINE = re.compile(r"at http://\S+:(\d+), grpc \S+:(\d+), metrics \S+, health http://[^:]+:(\d+)/")


class Member:
    """One mplug.server of the cluster. It keeps its ports when it is replaced."""

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.number = number
        self._command, self._environment = list(command), environment
        self.place: Server | None = None
        self._start()

    def _start(self) -> None:
        ports = (
            (0, 0, 0) if self.place is None else (self.place.http_port, self.place.grpc_port, self.place.health_port)
        )
        flags = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "health"), ports, strict=True)]
        self.process = subprocess.Popen(
            [*self._command, *flags, "--metrics-port=0"],
            cwd=CHECKOUT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches us alone, and we drain
        )

    def wait_ready(self) -> None:
        """Read the ready line. Raises GatewayError when the server ends instead; it has said why."""
        line = self.process.stdout.readline()
        found = _READY_LINE.search(line)
        if found is None:
            raise GatewayError(f"server {self.number} has not become ready")
        self.place = Server("127.0.0.1", *map(int, found.groups()))
        # A restart prints its line, too; nobody else reads them.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def drain(self) -> bool:
        """Ask it to end and wait for that; whether it has answered everything."""
        self.process.terminate()
        try:
            return self.process.wait(LAME_DUCK_SECONDS + DRAIN_SECONDS + 15) == 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            return False

    def replace(self) -> bool:
        """Drain it and start it again on its ports; whether nothing was dropped."""
        drained = self.drain()
        self._start()
        self.wait_ready()
        return drained


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _parse(argv)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: asked.append(received))
    members: list[Member] = []
    gateway: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryDirectory(prefix="mplug-cluster-") as folder:
        try:
            envoy = find_envoy(arguments.envoy)
            members += _start_members(arguments)
            for member in members:
                member.wait_ready()
            made = Gateway(
                tuple(member.place for member in members),
                host=arguments.host,
                http_port=arguments.http_port,
                grpc_port=arguments.grpc_port,
            )
            write(made, Path(folder) / "envoy.json")
            gateway = start(envoy, Path(folder) / "envoy.json")
            _wait_open(made, gateway)
            print(
                f"ready: {len(members)} server{'s'[: len(members) - 1]} behind http://{made.host}:{made.http_port}, "
                f"grpc {made.host}:{made.grpc_port}; processes {' '.join(str(one.process.pid) for one in members)}",
                flush=True,
            )
            return _keep(members, gateway, asked)
        except GatewayError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 1
        finally:
            for process in [*(member.process for member in members), *([gateway] if gateway else [])]:
                if process.poll() is None:
                    process.terminate()
                    process.wait()


def _keep(members: list[Member], gateway: subprocess.Popen[bytes], asked: list[int]) -> int:
    """Run until a signal, then drain; returns the exit code."""
    while True:
        while not asked:
            if gateway.poll() is not None:
                raise GatewayError(f"Envoy has ended with exit code {gateway.returncode}")
            for member in members:
                if member.process.poll() is not None:
                    raise GatewayError(f"server {member.number} has ended and does not start again")
            time.sleep(0.2)
        replaces = asked.pop(0) == signal.SIGHUP
        clean = True
        for member in members:
            clean &= member.replace() if replaces else member.drain()
            if replaces:
                time.sleep(NOTICE_SECONDS)
            print(f"server {member.number} is {'replaced' if replaces else 'drained'}", flush=True)
            if not replaces and member is not members[-1]:
                time.sleep(NOTICE_SECONDS)
        if not replaces:
            return 0 if clean else 1


def _start_members(arguments: argparse.Namespace) -> list[Member]:
    cores = len(os.sched_getaffinity(0))
    environment = {"MPLUG_THREADS": str(max(1, cores // arguments.servers)), **os.environ}
    command = [sys.executable, "-m", "mplug.server", arguments.repository, "--restart"]
    command += [f"--lame-duck={LAME_DUCK_SECONDS}", f"--drain-seconds={DRAIN_SECONDS}"]
    return [Member(number, command, environment) for number in range(1, arguments.servers + 1)]


def _wait_open(made: Gateway, gateway: subprocess.Popen[bytes]) -> None:
    """Until the gateway has found a server that is ready."""
    host = "127.0.0.1" if made.host == "0.0.0.0" else made.host
    deadline = time.monotonic() + GATEWAY_SECONDS
    while True:
        if gateway.poll() is not None or time.monotonic() > deadline:
            raise GatewayError(
                f"the gateway does not open its ports {made.http_port} and {made.grpc_port}; are they taken?"
            )
        try:
            with urllib.request.urlopen(f"http://{host}:{made.http_port}/v2/health/ready", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Several mplug.server on this machine behind one gateway.")
    parser.add_argument("repository", metavar="DIR", help="what builders/build.py wrote")
    parser.add_argument("--servers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="the gateway's address (default: %(default)s)")
    parser.add_argument("--http-port", type=int, default=Gateway.http_port, help="default: %(default)s")
    parser.add_argument("--grpc-port", type=int, default=Gateway.grpc_port, help="default: %(default)s")
    parser.add_argument("--envoy", help="Envoy's executable")
    arguments = parser.parse_args(argv)
    if arguments.servers < 1:
        parser.error(f"--servers {arguments.servers} is less than 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
