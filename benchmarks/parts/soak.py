"""Some thousand mixed requests, with cancellations and bad ones among them: each is answered once, memory stays flat.

    python -m benchmarks.parts.soak [--preset base|quick] [--repository DIR] [--result FILE]

Runs against the demo's repository where it has been built (`make build`), else against a tiny random one: what
is tried is the bookkeeping, and thousands of captions of base size take too long. Exit code 1 if any check fails.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks.measure.figures import goal, growth, summary
from benchmarks.measure.mixed_requests import CANCELLED, OK, Mixed, draw, soak_pictures
from benchmarks.measure.processes import group_memory
from benchmarks.measure.server_metrics import Metrics, mean_batch
from benchmarks.parts import part
from benchmarks.workspace import ROOT, Workspace, say
from clients.client import AsyncClient, ClientError
from mplug.server.command import TritonServer
from mplug.triton.drain import IN_FLIGHT_METRIC

DEMO_REPOSITORY = ROOT / "build" / "demo"
PICTURES = 24
SEED = 20
SAMPLE_SECONDS = 0.5
#: An answer that takes longer is lost.
LOST_SECONDS = 120.0
#: The first half warms up: a runtime plans for every new shape of a batch, once, and keeps its plans.
WARM_SHARE = 0.5
#: From then on the level of memory may rise by so much.
FLAT = 0.05
QUIET_SECONDS = 10.0


def repository_of(workspace: Workspace) -> Path:
    """What the soak runs against; see the module's description."""
    if workspace.served is not None:
        return workspace.served
    if (DEMO_REPOSITORY / "build_info.json").exists():
        return DEMO_REPOSITORY
    return workspace.at_preset("quick").prepare()


def measure(workspace: Workspace) -> dict[str, Any]:
    """Send everything, watch, and check."""
    repository = repository_of(workspace)
    requests = draw(workspace.preset.requests, SEED, soak_pictures(PICTURES))
    say(f"{len(requests)} requests to {repository.name}, {workspace.preset.soak_clients} at a time")
    with TritonServer(repository) as server:
        watch = Watch(server)
        before = Metrics.read(server.metrics_url)
        began = time.monotonic()
        outcomes = asyncio.run(_send_all(requests, server, workspace.preset.soak_clients, watch))
        seconds = time.monotonic() - began
        after = _when_quiet(server)
    return {"repository": repository.name, **outcome(requests, outcomes, watch.samples, before, after, seconds)}


class Watch:
    """Samples memory and metrics while the requests run."""

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self.samples: list[dict[str, Any]] = []
        self._began = time.monotonic()

    async def run(self) -> None:
        """Until cancelled. A metrics port that does not answer ends it with the error."""
        while True:
            metrics = await asyncio.to_thread(Metrics.read, self._server.metrics_url)
            memory = group_memory(self._server.pid)
            self.samples.append(
                {
                    "second": round(time.monotonic() - self._began, 2),
                    "resident_mib": round(sum(memory.values()), 1),
                    "processes": {name: round(mib, 1) for name, mib in memory.items()},
                    "decode_batch": metrics.total("mplug_decode_batch"),
                    "waiting": metrics.total("mplug_decode_waiting"),
                    "in_flight": metrics.total(IN_FLIGHT_METRIC, model="caption"),
                }
            )
            await asyncio.sleep(SAMPLE_SECONDS)


async def _send_all(requests: list[Mixed], server: TritonServer, clients: int, watch: Watch) -> list[dict[str, Any]]:
    """One outcome per request, in their order."""
    outcomes: list[dict[str, Any] | None] = [None] * len(requests)
    left = deque(enumerate(requests))
    async with AsyncExitStack() as stack:
        by_protocol = {
            protocol: await stack.enter_async_context(AsyncClient(url, protocol, timeout=LOST_SECONDS))
            for protocol, url in (("grpc", server.grpc_url), ("http", server.http_url))
        }

        async def client() -> None:
            while left:
                index, request = left.popleft()
                outcomes[index] = await _send(request, by_protocol, server.grpc_url)
                if (index + 1) % (len(requests) // 10 or 1) == 0:
                    say(f"{index + 1} of {len(requests)} sent")

        watching = asyncio.create_task(watch.run())
        await asyncio.gather(*(client() for _ in range(clients)))
        if watching.done():
            watching.result()
        watching.cancel()
    return [one if one is not None else {"status": "LOST"} for one in outcomes]


async def _send(request: Mixed, clients: Mapping[str, AsyncClient], grpc_url: str) -> dict[str, Any]:
    began = time.monotonic()
    try:
        if request.kind == "impatient":
            async with AsyncClient(grpc_url, timeout=request.after) as impatient:
                captions = await impatient.infer(request.call)
        elif request.kind == "cancelled":
            task = asyncio.create_task(clients["grpc"].infer(request.call))
            done, _ = await asyncio.wait([task], timeout=request.after)
            if not done:
                task.cancel()
            captions = await task
        else:
            captions = await clients[request.protocol].infer(request.call)
        status, message = OK, ""
        if len(captions) != request.answers:
            status, message = "WRONG", f"{len(captions)} captions instead of {request.answers}"
    except ClientError as error:
        status, message = error.status, str(error)
    except asyncio.CancelledError:
        status, message = CANCELLED, ""
    return {"status": status, "message": message, "seconds": time.monotonic() - began}


def _when_quiet(server: TritonServer) -> Metrics:
    """The metrics once nothing is in flight, or after QUIET_SECONDS as they are."""
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        metrics = Metrics.read(server.metrics_url)
        left = sum(metrics.total(name) for name in (IN_FLIGHT_METRIC, "mplug_decode_batch", "mplug_decode_waiting"))
        if not left or time.monotonic() > deadline:
            return metrics
        time.sleep(0.1)


def wrong_outcomes(requests: list[Mixed], outcomes: list[dict[str, Any]]) -> list[str]:
    """One line for each request that ended otherwise than it should."""
    wrong = []
    for request, found in zip(requests, outcomes, strict=True):
        if found["status"] not in request.expected:
            said = f" ({found['message']})" if found.get("message") else ""
            wrong.append(f"{request.kind} over {request.protocol}: {found['status']}{said}")
        elif request.names and request.names not in found["message"]:
            wrong.append(f"{request.kind}: the error names not {request.names} but says {found['message']}")
    return wrong


def outcome(
    requests: list[Mixed],
    outcomes: list[dict[str, Any]],
    samples: list[dict[str, Any]],
    before: Metrics,
    after: Metrics,
    seconds: float,
) -> dict[str, Any]:
    """What happened → `results` and `goals`, which here are the checks."""
    wrong = wrong_outcomes(requests, outcomes)
    by_kind: dict[str, Counter[str]] = {}
    for request, found in zip(requests, outcomes, strict=True):
        by_kind.setdefault(request.kind, Counter())[found["status"]] += 1
    good = [found["seconds"] for request, found in zip(requests, outcomes, strict=True) if request.kind == "good"]
    # A request that was cancelled or given up may never have reached the server; every other one has, once.
    certain = sum(request.kind in ("good", "bad") for request in requests)
    counted = sum(
        after.since(before, name, model="caption")
        for name in ("nv_inference_request_success", "nv_inference_request_failure")
    )
    left = sum(after.total(name) for name in (IN_FLIGHT_METRIC, "mplug_decode_batch", "mplug_decode_waiting"))
    risen = growth([sample["resident_mib"] for sample in samples], WARM_SHARE)
    decode = {
        name: after.since(before, f"mplug_decode_{name}_total")
        for name in ("admitted", "finished", "cancelled", "refused", "failed", "tokens", "steps")
    }
    results = {
        "requests": len(requests),
        "seconds": round(seconds, 1),
        "requests_per_second": round(len(requests) / seconds, 2),
        "outcomes": {k: dict(v) for k, v in by_kind.items()},
        "wrong": wrong[:20],
        "latency_of_good": summary(good),
        "answered_by_server": counted,
        "decode": decode,
        "mean_decode_batch": mean_batch(before, after),
        "memory_growth": round(risen, 4),
        "samples": samples,
    }
    goals = [
        goal("requests answered otherwise than they should be", "0", len(wrong), not wrong),
        goal(
            "requests that the server answered, once each",
            f"{certain} to {len(requests)}",
            counted,
            certain <= counted <= len(requests),
        ),
        goal("requests left in flight at the end", "0", left, not left),
        goal("decoder errors", "0", decode["failed"], not decode["failed"]),
        goal(
            "growth of resident memory in the second half, percent", f"at most {FLAT:.0%}", risen * 100, risen <= FLAT
        ),
    ]
    return {"results": results, "goals": goals}


if __name__ == "__main__":
    sys.exit(part.main("soak", measure, __doc__, repository_of=repository_of, checks=True))
