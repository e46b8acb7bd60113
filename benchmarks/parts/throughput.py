"""Captions per second and latency under load: ours, ours without in-flight batching, LitServe over BLIP.

    python -m benchmarks.parts.throughput [--preset base|quick] [--result FILE] [--series NAME …]

Closed loops of clients that ask for captions of mixed lengths (8 to 20 tokens) of pictures that are all
different, one server at a time. Last, ours with pictures that repeat: the response cache answers for the
vision encoder, and what is left is the decoder with every slot in use. `--series ours litserve_blip` measures these
again and keeps what FILE has of the others.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import aiohttp

from benchmarks.measure.figures import goal, load_figures
from benchmarks.measure.floors import captions_per_second
from benchmarks.measure.load import Ask, Load, run_load
from benchmarks.measure.machine import Limits, measure_limits
from benchmarks.measure.pictures import Pictures
from benchmarks.measure.server_metrics import Metrics, mean_batch
from benchmarks.parts import part
from benchmarks.presets import BEAMS, Preset
from benchmarks.workspace import ROOT, Workspace, say
from clients.client import AsyncClient
from mplug.server.command import TritonServer

OURS, INT8, ONE_SLOT, REPEATED = "ours", "ours_int8", "ours_one_slot", "ours_repeated_pictures"
LITSERVE = "litserve_blip"
TITLES = {
    OURS: "ours",
    INT8: "ours in int8",
    ONE_SLOT: "ours, in-flight batching off",
    REPEATED: "ours, pictures that repeat",
    LITSERVE: "LitServe over BLIP, batches of 8",
}
#: So few that all of their image states stay in the response cache.
REPEATED_PICTURES = 16
REQUEST_SECONDS = 600.0
LITSERVE_START_SECONDS = 180.0
#: What a setting may take besides its window: a server that starts, a warm-up.
SLOWEST_START = 40.0
#: The clients that the goals speak of.
GOAL_CLIENTS = 16
#: How many times LitServe's captions/s with as many clients ours are to be, and how many times its best with any.
LEAST_TIMES = (6, 3)


def measure(workspace: Workspace) -> dict[str, Any]:
    """Measure all settings, one after another; one that fails is named in `errors`, and the others go on.

    Raises ValueError for a series that there is not.
    """
    unknown = sorted(set(workspace.series) - set(TITLES))
    if unknown:
        raise ValueError(f"no series {', '.join(unknown)}; there are {', '.join(TITLES)}")
    preset, precision = workspace.preset, workspace.build_info()["precision"]
    say("measuring bandwidth and arithmetic")
    limits = measure_limits(preset.matrix_side, preset.array_mib)
    say(f"drawing {preset.pictures} pictures")
    pictures = Pictures(preset.pictures)
    asked = workspace.series or tuple(TITLES)
    earlier = _earlier(workspace.earlier)
    results = {name: [] if name in asked else series for name, series in earlier["series"].items()}
    if "limits" in earlier:
        limits = limits.or_better(Limits(**earlier["limits"]))
    errors: list[str] = []
    # A setting that would be begun too late is left out, so that the others are not lost with it.
    last_start = time.monotonic() + preset.limits["throughput"] - SLOWEST_START - preset.longest_window

    def note(name: str, clients: int, run: Callable[[], dict[str, Any]]) -> None:
        try:
            if time.monotonic() > last_start:
                raise TimeoutError("left out: the part has no time left; give it more with --limit SECONDS")
            figures = {"clients": clients, **run()}
        except Exception as error:
            errors.append(f"{TITLES[name]}, {clients} clients: {type(error).__name__}: {error}")
            say(errors[-1])
            return
        results[name].append(figures)
        say(
            f"{TITLES[name]}, {clients} clients: {figures['captions_per_second']:.2f} captions/s, "
            f"p50 {figures['latency_p50']:.2f} s, p95 {figures['latency_p95']:.2f} s"
        )

    if OURS in asked or REPEATED in asked:
        with TritonServer(workspace.repository) as server:
            for clients in preset.clients if OURS in asked else ():
                note(OURS, clients, lambda count=clients: _ours(server, preset, count, pictures))
            if REPEATED in asked:
                few, most = Pictures(REPEATED_PICTURES, first_seed=len(pictures)), max(preset.clients)
                filled = replace(preset, warm_seconds=preset.fill_seconds)
                note(REPEATED, most, lambda: _ours(server, filled, most, few))
    for clients in preset.clients if LITSERVE in asked else ():
        note(LITSERVE, clients, lambda count=clients: _litserve(workspace, count, pictures))
    if INT8 in asked:
        with TritonServer(workspace.at_precision("int8").prepare()) as server:
            for clients in preset.int8_clients:
                note(INT8, clients, lambda count=clients: _ours(server, preset, count, pictures))
    if ONE_SLOT in asked:
        with TritonServer(workspace.one_slot_repository()) as server:
            for clients in preset.unbatched_clients:
                note(ONE_SLOT, clients, lambda count=clients: _ours(server, preset, count, pictures))
    return outcome(results, errors, preset, precision, limits)


def _earlier(path: Path | None) -> dict[str, Any]:
    """Return the results of a file; empty series where it is not there."""
    if path is None or not path.exists():
        return {"series": {name: [] for name in TITLES}}
    return json.loads(path.read_text())["results"]


def _ours(server: TritonServer, preset: Preset, clients: int, pictures: Pictures) -> dict[str, Any]:
    readings: list[Metrics] = []

    def read() -> None:
        readings.append(Metrics.read(server.metrics_url))

    async def load() -> dict[str, Any]:
        async with AsyncClient(server.grpc_url, timeout=REQUEST_SECONDS) as client:

            async def ask(picture: bytes, tokens: int) -> None:
                await client.caption(picture, num_beams=BEAMS, min_length=tokens, max_length=tokens)

            return await _figures(preset, clients, ask, pictures, read)

    figures = asyncio.run(load())
    before, after = readings
    figures["mean_decode_batch"] = mean_batch(before, after)
    hits = "nv_cache_num_hits_per_model"
    figures["vision_cache_hits"] = after.since(before, hits, model="vision_encoder")
    return figures


def _litserve(workspace: Workspace, clients: int, pictures: Pictures) -> dict[str, Any]:
    async def load(port: int) -> dict[str, Any]:
        async with _http_ask(f"http://127.0.0.1:{port}/predict") as ask:
            return await _figures(workspace.preset, clients, ask, pictures, lambda: None)

    # A fresh one each time: what is still queued of the last setting would be answered first.
    with litserve(workspace) as port:
        return asyncio.run(load(port))


async def _figures(
    preset: Preset, clients: int, ask: Ask, pictures: Pictures, read: Callable[[], None]
) -> dict[str, Any]:
    load = Load(
        clients,
        preset.lengths,
        preset.warm_seconds,
        preset.window_seconds,
        preset.least_captions,
        preset.longest_window,
    )
    result = await run_load(load, ask, pictures, on_open=read, on_close=read)
    return load_figures(result.answers, result.opened)


@asynccontextmanager
async def _http_ask(url: str) -> AsyncIterator[Ask]:
    timeout, connector = aiohttp.ClientTimeout(total=REQUEST_SECONDS), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def ask(picture: bytes, tokens: int) -> None:
            body = {"image": base64.b64encode(picture).decode(), "tokens": tokens}
            async with session.post(url, json=body) as response:
                response.raise_for_status()
                ids = (await response.json())["ids"]
            if len(ids) != 1 + tokens:
                raise RuntimeError(f"{len(ids) - 1} tokens instead of {tokens}")

        yield ask


@contextmanager
def litserve(workspace: Workspace) -> Iterator[int]:
    """Start LitServe in a process group of its own and yield its port once it is healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = workspace.folder / "litserve.log"
    command = [sys.executable, "-m", "benchmarks.contenders.litserve_blip", "--port", str(port)]
    command += ["--preset", workspace.preset.name]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_healthy(process, port, log)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers are in its group
        process.wait()


def _wait_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    async def healthy() -> bool:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            try:
                async with session.get(f"http://127.0.0.1:{port}/health") as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

    deadline = time.monotonic() + LITSERVE_START_SECONDS
    while not asyncio.run(healthy()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"LitServe did not start: {log.read_text()[-500:]}")
        time.sleep(0.2)


def outcome(
    results: dict[str, list[dict[str, Any]]], errors: list[str], preset: Preset, precision: str, limits: Limits
) -> dict[str, Any]:
    """Turn figures by setting into the part's `results` and those goals that can be judged."""
    baseline = results[LITSERVE]
    goals, floors = [], {}
    at_baseline = _at(baseline, GOAL_CLIENTS)
    best = max((each["captions_per_second"] for each in baseline), default=0.0)
    for name, of, note in ((OURS, precision, ""), (INT8, "int8", " in int8")):
        at_ours = _at(results[name], GOAL_CLIENTS)
        most = captions_per_second(
            preset.sizes, of, limits, beams=BEAMS, tokens=mean(preset.lengths), sequences=GOAL_CLIENTS
        )
        floors[name] = round(most, 4)
        others = {"times LitServe's": (at_baseline or {}).get("captions_per_second"), "times LitServe's best": best}
        for (against, other), least in zip(others.items(), LEAST_TIMES, strict=True):
            if at_ours and other:
                times = at_ours["captions_per_second"] / other
                title = f"captions/s{note} at {GOAL_CLIENTS} clients, {against}"
                floor = f"the floor of {most:.2f} captions/s"
                goals.append(goal(title, f"at least {least}", times, times >= least, floor=floor, allows=most / other))
    at_ours = _at(results[OURS], GOAL_CLIENTS)
    if at_ours and at_baseline:
        latency = at_ours["latency_p95"] / at_baseline["latency_p50"]
        goals.append(goal("our p95 latency at 16 clients over LitServe's median", "below 1", latency, latency < 1))
    for entry in results[REPEATED]:
        if entry["clients"] == 32 and entry["mean_decode_batch"] is not None:
            batch = entry["mean_decode_batch"]
            goals.append(goal("mean decode batch with 32 requests in flight", "above 24", batch, batch > 24))
    found = {"titles": TITLES, "series": results, "errors": errors, "floors": floors, "limits": asdict(limits)}
    return {"results": found, "goals": goals}


def _at(series: list[dict[str, Any]], clients: int) -> dict[str, Any] | None:
    return next((entry for entry in series if entry["clients"] == clients), None)


if __name__ == "__main__":
    sys.exit(part.main("throughput", measure, __doc__))
