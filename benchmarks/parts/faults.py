"""Faults under load: what 32 clients get while a process is killed, stopped or asked to end, or a resource runs out.

    python -m benchmarks.parts.faults --repository DIR --envoy ENVOY [--only NAME …] [--clients 32] [--page FILE]

For each fault two servers are behind the gateway, and one of them is hit; half of the clients speak gRPC, half HTTP,
and none of them repeats a request. An answer is right when it is the one that the server gave before; an error is an
answer that says why; lost is what got no answer within LOST_SECONDS. Exit code 1 if a request is not answered right.
`unshare` and root are needed for the two faults of full file systems; without them these are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc.aio
import tritonclient.http.aio

from benchmarks.measure.mixed_requests import soak_pictures
from benchmarks.measure.ready import free_port, is_ready, wait_until
from benchmarks.page import write_section
from deploy.gateway.cluster import NOTICE_SECONDS, Member
from deploy.gateway.configuration import Gateway
from deploy.gateway.run import find_envoy, start, write

LOST_SECONDS = 60.0
STEADY_SECONDS = 3.0  # of load before the fault
AFTER_SECONDS = 4.0  # of load after the server is back, or has ended
STOPPED_SECONDS = 8.0  # for which a launcher is stopped: nobody is there to end it
PICTURES = 24
FULL_MIB = 512  # size of the file systems that are filled


@dataclass
class Counts:
    """What the clients got."""

    sent: int = 0
    right: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0
    slowest: float = 0.0


class Clients:
    """Clients that ask for captions until told to stop, without repeating anything."""

    def __init__(self, http_url: str, grpc_url: str, count: int) -> None:
        self.by_protocol = {"grpc": Counts(), "http": Counts()}
        self._urls = {"grpc": grpc_url, "http": http_url}
        self._count = count
        self._stopped = False
        self._pictures = soak_pictures(PICTURES)
        self._expected: dict[int, bytes] = {}

    async def learn(self) -> None:
        """Ask for every picture once: later answers must be these."""
        async with tritonclient.grpc.aio.InferenceServerClient(self._urls["grpc"]) as client:
            for index in range(PICTURES):
                self._expected[index] = await self._ask("grpc", client, index)

    async def run(self, during: Callable[[], None]) -> None:
        """Load until `during`, run in a thread, has returned."""
        tasks = [asyncio.create_task(self._client(("grpc", "http")[index % 2], index)) for index in range(self._count)]
        try:
            await asyncio.to_thread(during)
        finally:
            self._stopped = True
            await asyncio.gather(*tasks)

    async def _client(self, protocol: str, number: int) -> None:
        counts = self.by_protocol[protocol]
        if protocol == "grpc":
            client: Any = tritonclient.grpc.aio.InferenceServerClient(self._urls[protocol])
        else:
            client = tritonclient.http.aio.InferenceServerClient(self._urls[protocol], conn_timeout=2 * LOST_SECONDS)
        turn = number
        while not self._stopped:
            turn += 1
            counts.sent += 1
            began = time.monotonic()
            try:
                found = await asyncio.wait_for(self._ask(protocol, client, turn % PICTURES), LOST_SECONDS)
            except TimeoutError:
                counts.lost += 1
            except Exception as error:
                counts.errors[" ".join(str(error).split())[:120] or type(error).__name__] += 1
                await asyncio.sleep(0.2)  # an outage is not to become a storm
            else:
                right = found == self._expected[turn % PICTURES]
                counts.right += right
                counts.wrong += not right
            counts.slowest = max(counts.slowest, time.monotonic() - began)
        await client.close()

    async def _ask(self, protocol: str, client: Any, index: int) -> bytes:
        api = tritonclient.grpc if protocol == "grpc" else tritonclient.http
        picture = api.InferInput("IMAGE", [1], "BYTES")
        picture.set_data_from_numpy(np.array([self._pictures[index]], np.object_))
        beams = api.InferInput("NUM_BEAMS", [1], "INT32")
        beams.set_data_from_numpy(np.array([1], np.int32))
        answer = await client.infer("caption", [picture, beams])
        return answer.as_numpy("CAPTION")[0]


def processes_of(member: Member) -> dict[str, psutil.Process]:
    """The processes of a server: its launcher, tritonserver, and the stubs by their models."""
    launcher = psutil.Process(member.process.pid)
    found = {"launcher": launcher}
    for process in launcher.children(recursive=True):
        name, arguments = process.name(), process.cmdline()
        if name == "tritonserver":
            found["tritonserver"] = process
        elif name.startswith("triton_python_b"):
            found[arguments[1].split("/")[-3]] = process
    return found


@dataclass(frozen=True)
class Fault:
    """One fault: `inject` is given the server that is hit, and returns what undoes it."""

    name: str
    inject: Callable[[Member], Callable[[], None] | None]
    ends: bool = False  # the server ends and is not started again
    confined: bool = False  # the server needs small file systems of its own
    rolling: bool = False  # no fault: every server is replaced by a new one, one after the other


def _signal(process: str, number: int) -> Callable[[Member], None]:
    return lambda member: os.kill(processes_of(member)[process].pid, number)


def _stop_for_a_while(member: Member) -> Callable[[], None]:
    os.kill(member.process.pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    os.kill(member.process.pid, signal.SIGCONT)
    return lambda: None


def _fill(path: str) -> Callable[[Member], Callable[[], None]]:
    def inject(member: Member) -> Callable[[], None]:
        filler = Path(f"/proc/{processes_of(member)['tritonserver'].pid}/root{path}/filler")
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:
                pass  # it is full
        return lambda: filler.unlink(missing_ok=True)

    return inject


def _few_descriptors(member: Member) -> Callable[[], None]:
    process = processes_of(member)["tritonserver"]
    before = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 2, before[1]))
    return lambda: process.is_running() and process.rlimit(resource.RLIMIT_NOFILE, before)


def faults() -> list[Fault]:
    """Return all faults."""
    found = []
    for process in ("launcher", "tritonserver", "caption", "text_decoder", "vision_encoder"):
        label = process if process in ("launcher", "tritonserver") else f"process of `{process}`"
        ends = process == "launcher"
        found.append(Fault(f"SIGKILL, {label}", _signal(process, signal.SIGKILL), ends=ends))
        stop = _stop_for_a_while if ends else _signal(process, signal.SIGSTOP)
        found.append(Fault(f"SIGSTOP, {label}", stop))
        found.append(Fault(f"SIGTERM, {label}", _signal(process, signal.SIGTERM), ends=ends))
    found.append(Fault("rolling replacement of both", Member.replace, rolling=True))
    found.append(Fault("few file descriptors, tritonserver", _few_descriptors))
    if os.getuid() == 0 and shutil.which("unshare"):
        found.append(Fault("full /dev/shm", _fill("/dev/shm"), confined=True))
        found.append(Fault("full disk, and SIGTERM", _full_disk_and_end, ends=True, confined=True))
    return found


def _full_disk_and_end(member: Member) -> Callable[[], None]:
    undo = _fill(os.environ.get("MPLUG_FAULTS_DISK", "/mnt"))(member)
    time.sleep(1)
    os.kill(member.process.pid, signal.SIGTERM)
    return undo


def _command(repository: Path, confined: bool) -> list[str]:
    command = [sys.executable, "-m", "mplug.server", str(repository), "--lame-duck=5", "--restart"]
    if not confined:
        return command
    # A mount namespace of its own: what is filled is nobody else's.
    script = (
        f"mount -t tmpfs -o size={FULL_MIB}m tmpfs /dev/shm && mount -t tmpfs -o size={FULL_MIB}m tmpfs /mnt && "
        'export TMPDIR=/mnt && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh", *command]


@contextmanager
def two_servers(repository: Path, envoy: Sequence[str], confined: bool, folder: Path):
    """Two servers behind a gateway; the first is the one to be hit."""
    environment = {"MPLUG_THREADS": "1", **os.environ}
    members = [Member(number, _command(repository, confined and number == 1), environment) for number in (1, 2)]
    gateway = None
    try:
        for member in members:
            member.wait_ready()
        made = Gateway(tuple(member.place for member in members), http_port=free_port(), grpc_port=free_port())
        path = folder / "envoy.json"
        path.unlink(missing_ok=True)
        write(made, path)
        gateway = start(envoy, path, concurrency=1)
        wait_until(lambda: is_ready(made.http_port, "/v2/health/ready"))
        time.sleep(2)  # until both servers have been checked
        yield members, made
    finally:
        for process in [*(member.process for member in members), *([gateway] if gateway else [])]:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            process.wait()


def measure(fault: Fault, repository: Path, envoy: Sequence[str], clients: int) -> dict[str, Any]:
    """Inject one fault under load and return what the clients got."""
    with (
        tempfile.TemporaryDirectory(prefix="mplug-faults-") as folder,
        two_servers(repository, envoy, fault.confined, Path(folder)) as (members, made),
    ):
        hit = members[0]
        asked = Clients(f"127.0.0.1:{made.http_port}", f"127.0.0.1:{made.grpc_port}", clients)
        notes: dict[str, Any] = {}

        def during() -> None:
            time.sleep(STEADY_SECONDS)
            began = time.monotonic()
            if fault.rolling:
                notes["drained"] = []
                for member in members:
                    notes["drained"].append(fault.inject(member))
                    time.sleep(NOTICE_SECONDS)
                notes["seconds"] = round(time.monotonic() - began, 1)
                time.sleep(AFTER_SECONDS)
                return
            undo = fault.inject(hit)
            if fault.ends:
                notes["ended"] = wait_until(lambda: hit.process.poll() is not None)
                notes["exit"] = hit.process.poll()
            else:
                time.sleep(4)
                if undo is not None:
                    undo()
                notes["back"] = wait_until(lambda: is_ready(hit.place.health_port, "/health/ready"))
            notes["seconds"] = round(time.monotonic() - began, 1)
            time.sleep(AFTER_SECONDS)

        async def load() -> None:
            await asked.learn()
            await asked.run(during)

        asyncio.run(load())
    return {"fault": fault.name, **notes} | {
        protocol: vars(counts) | {"errors": dict(counts.errors)} for protocol, counts in asked.by_protocol.items()
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| fault of one of two servers | protocol | sent | right | errors | lost | slowest answer |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        for protocol, label in (("grpc", "gRPC"), ("http", "HTTP")):
            counts = result[protocol]
            errors = sum(counts["errors"].values()) + counts["wrong"]
            numbers = f"{counts['sent']} | {counts['right']} | {errors} | {counts['lost']} | {counts['slowest']:.1f} s"
            lines.append(f"| {result['fault']} | {label} | {numbers} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Faults under load, two servers behind the gateway.")
    parser.add_argument("--repository", type=Path, default=Path("build/demo"))
    parser.add_argument("--envoy")
    parser.add_argument("--only", nargs="*", help="faults whose names contain one of these")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--page", type=Path, help="Markdown file whose section `faults` is rewritten")
    parser.add_argument("--result", type=Path, help="JSON file of the counts")
    arguments = parser.parse_args(argv)
    envoy = find_envoy(arguments.envoy)
    results = []
    for fault in faults():
        if arguments.only and not any(word in fault.name for word in arguments.only):
            continue
        results.append(measure(fault, arguments.repository, envoy, arguments.clients))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        if arguments.result:
            arguments.result.write_text(json.dumps(results, indent=1))
    print(table(results))
    if arguments.page:
        write_section(arguments.page, "faults", table(results))
    bad = sum(
        result[protocol]["sent"] - result[protocol]["right"] for result in results for protocol in ("grpc", "http")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
