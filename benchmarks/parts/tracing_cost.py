"""What traces cost: a server that sends them beside one that does not, asked the same by turns.

    python -m benchmarks.parts.tracing_cost --repository build/demo [--rounds 12] [--requests 60] [--page FILE]

Each round asks both servers for the same captions, one after the other, in an order that alternates. Compared are the
CPU seconds of all of a server's processes and the median time of a request, each as the median of the rounds' ratios.
A collector in a process of its own takes the spans.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.measure.mixed_requests import soak_pictures
from benchmarks.page import write_section
from clients.client import Client
from mplug.server.command import Options, TritonServer

PICTURES = 24
COLLECTOR = Path(__file__).resolve().parents[2] / "deploy" / "tracing" / "collector.py"


def cpu_seconds(server: TritonServer) -> float:
    """Return the CPU time of tritonserver and its models' processes so far."""
    root = psutil.Process(server.pid)
    return sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))


def ask(server: TritonServer, client: Client, pictures: Sequence[bytes], requests: int) -> tuple[float, float]:
    """Return CPU seconds and the median seconds of one request."""
    before, times = cpu_seconds(server), []
    for index in range(requests):
        began = time.perf_counter()
        client.caption(pictures[index % len(pictures)])
        times.append(time.perf_counter() - began)
    time.sleep(1)  # for the spans to be sent: that is part of the cost
    return (cpu_seconds(server) - before) / requests, statistics.median(times)


def measure(repository: Path, endpoint: str, rounds: int, requests: int) -> dict[str, list[tuple[float, float]]]:
    """Return for `off` and `on` what each round took."""
    pictures = soak_pictures(PICTURES)
    found: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
    with (
        TritonServer(repository, Options(cache_mb=0)) as off,
        TritonServer(repository, Options(cache_mb=0, trace_endpoint=endpoint)) as on,
        Client(off.grpc_url) as off_client,
        Client(on.grpc_url) as on_client,
    ):
        both = [("off", off, off_client), ("on", on, on_client)]
        for _, server, client in both:
            ask(server, client, pictures, requests)  # warm
        for number in range(rounds):
            for name, server, client in both[:: 1 if number % 2 else -1]:
                found[name].append(ask(server, client, pictures, requests))
    return found


def table(found: dict[str, list[tuple[float, float]]]) -> str:
    """Return the medians, and the median ratio of the rounds' pairs with its quartiles, as Markdown."""
    lines = ["| of one caption | off | on | on / off (quartiles) |", "| --- | ---: | ---: | ---: |"]
    for index, what in enumerate(("CPU, all processes", "time, median")):
        off, on = ([one[index] * 1e3 for one in found[name]] for name in ("off", "on"))
        low, middle, high = statistics.quantiles([b / a for a, b in zip(off, on, strict=True)], n=4)
        medians = f"{statistics.median(off):.1f} ms | {statistics.median(on):.1f} ms"
        lines.append(f"| {what} | {medians} | {middle:.3f} ({low:.3f} to {high:.3f}) |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="What traces cost, beside a server without them.")
    parser.add_argument("--repository", type=Path, default=Path("build/demo"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--requests", type=int, default=60, help="of each server in each round")
    parser.add_argument("--page", type=Path, help="Markdown file whose section `tracing` is rewritten")
    arguments = parser.parse_args(argv)
    collector = subprocess.Popen([sys.executable, COLLECTOR, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        endpoint = collector.stdout.readline().removeprefix("ready: ").strip()
        found = measure(arguments.repository, endpoint, arguments.rounds, arguments.requests)
    finally:
        collector.kill()
        collector.wait()
    print(table(found))
    if arguments.page:
        write_section(arguments.page, "tracing", table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
