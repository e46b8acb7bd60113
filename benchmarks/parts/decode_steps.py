"""Where a caption's time goes, and what one step of the decoder costs, beside the floor of this machine.

    python -m benchmarks.parts.decode_steps [--preset base|quick] [--result FILE]

Runs in one process, without Triton. The floor of a stage is the longer of two times: to read its weights and caches
once at the bandwidth that a matrix-vector product reaches here, and to compute its products at the rate that square
matrix products reach here.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from benchmarks.contenders.in_process import InProcess, Stopwatch
from benchmarks.measure.figures import goal, summary
from benchmarks.measure.floors import Work, caption_work, step_work
from benchmarks.measure.machine import Limits, measure_limits
from benchmarks.measure.pictures import Pictures
from benchmarks.measure.searches import search_at
from benchmarks.parts import part
from benchmarks.presets import BEAMS, TOKENS, Preset
from benchmarks.workspace import Workspace, say
from mplug.runtime import huge_pages, open_decoder
from mplug.runtime.interface import Decoder, StageInfo
from mplug.runtime.room import Room

WARM_CAPTIONS, TIMED_CAPTIONS = 3, 8
WARM_STEPS = 2
#: The goal of a step of one caption, in times its floor.
MOST_TIMES_FLOOR = 1.5
STAGES = ("parse", "vision_encoder", "prefill", "step", "rest")


def measure(workspace: Workspace) -> dict[str, Any]:
    """Measure the machine's limits, the time per stage of a caption, and the time per step by batch and position."""
    preset, precision = workspace.preset, workspace.build_info()["precision"]
    say("measuring bandwidth and arithmetic")
    limits = measure_limits(preset.matrix_side, preset.array_mib)
    stages = time_stages(workspace)
    steps = time_steps(workspace)
    return outcome(preset, precision, limits, stages, steps)


def time_stages(workspace: Workspace) -> list[dict[str, float]]:
    """Return seconds per stage of some captions; `rest` is what no stage accounts for: queues, copies."""
    pictures = Pictures(WARM_CAPTIONS + TIMED_CAPTIONS)
    say("captions, stage by stage")
    captions = []
    with closing(InProcess(workspace.repository)) as captioner:
        for number in range(WARM_CAPTIONS + TIMED_CAPTIONS):
            captioner.stopwatch.clear()
            began = time.perf_counter()
            captioner.caption(pictures.next(), TOKENS)
            whole = time.perf_counter() - began
            if number >= WARM_CAPTIONS:
                captions.append(_by_stage(captioner.stopwatch, whole))
    return captions


def _by_stage(stopwatch: Stopwatch, whole: float) -> dict[str, float]:
    seconds = dict(stopwatch.seconds)
    if stopwatch.calls["step"] != TOKENS:
        raise RuntimeError(f"a caption of {TOKENS} tokens took {stopwatch.calls['step']} steps")
    return {**seconds, "rest": whole - sum(seconds.values()), "whole": whole}


def time_steps(workspace: Workspace) -> list[dict[str, Any]]:
    """Return seconds of a step for every batch and position of the preset.

    Room is reserved as the decode loop reserves it, for a request whose last token stands at `position`; in
    ascending order, since room never shrinks.
    """
    preset = workspace.preset
    folder = workspace.repository / "text_decoder" / "1"
    decoder = open_decoder(folder)
    vocabulary = StageInfo.read(folder).sizes["vocab_size"]
    random = np.random.default_rng(0)
    states = preset.sizes.image_tokens
    measured = []
    for position in sorted(preset.positions):
        admitted = 0
        for batch in sorted(preset.batches):
            decoder.reserve(Room.rounded(batch, position, BEAMS, states, max_slots=batch))
            for slot in range(admitted, batch):
                decoder.admit(slot, random.standard_normal((states, preset.sizes.hidden_size), np.float32))
            admitted = batch
            taken = _steps(decoder, batch, search_at(position - 1, states, vocabulary, random), preset.steps)
            measured.append({"batch": batch, "position": position, **summary(taken)})
            say(f"batch {batch}, position {position}: {median(taken) * 1000:.1f} ms a step")
    return measured


def _steps(decoder: Decoder, batch: int, search: dict[str, np.ndarray], number: int) -> list[float]:
    """Time steps that stay at their position: a search that is over moves no further."""
    for slot in range(batch):
        decoder.load(slot, search)
    taken = []
    for index in range(WARM_STEPS + number):
        if index == WARM_STEPS:
            huge_pages.wait()
        began = time.perf_counter()
        decoder.step(batch, BEAMS, 1)
        taken.append(time.perf_counter() - began)
    return taken[WARM_STEPS:]


def outcome(
    preset: Preset, precision: str, limits: Limits, captions: list[dict[str, float]], steps: list[dict[str, Any]]
) -> dict[str, Any]:
    """Turn measurements into `results`, each with its floor, and the goal of a step of one caption."""
    sizes = preset.sizes
    works = caption_work(sizes, precision, beams=BEAMS, tokens=TOKENS)
    stages = {}
    for stage in (*STAGES, "whole"):
        entry: dict[str, Any] = {"seconds": round(median(caption.get(stage, 0.0) for caption in captions), 6)}
        if stage in works:
            entry |= _floor(works[stage], limits, precision, entry["seconds"])
        stages[stage] = entry
    stages["whole"]["floor"] = round(sum(stages[stage]["floor"] for stage in works), 6)
    stages["whole"]["times_floor"] = round(stages["whole"]["seconds"] / stages["whole"]["floor"], 2)
    for entry in steps:
        work = step_work(sizes, precision, sequences=entry["batch"], beams=BEAMS, position=entry["position"] - 1)
        entry |= _floor(work, limits, precision, entry["median"])
        entry["per_sequence"] = round(entry["median"] / entry["batch"], 6)
    goals = [
        goal(
            f"a step of one caption at position {entry['position']}, times its floor",
            f"at most {MOST_TIMES_FLOOR}",
            entry["times_floor"],
            entry["times_floor"] <= MOST_TIMES_FLOOR,
            floor=f"reading {entry['megabytes']:.0f} MB at {limits.read_bandwidth / 1e9:.1f} GB/s",
            allows=1.0,
        )
        for entry in steps
        if entry["batch"] == 1
    ]
    return {"results": {"limits": asdict(limits), "stages": stages, "steps": steps}, "goals": goals}


def _floor(work: Work, limits: Limits, precision: str, seconds: float) -> dict[str, Any]:
    floor = work.seconds(limits, precision)
    return {
        "floor": round(floor, 6),
        "times_floor": round(seconds / floor, 2),
        "bound_by": work.bound_by(limits, precision),
        "megabytes": round(work.bytes / 1e6, 1),
        "gigaoperations": round((work.operations + work.attention) / 1e9, 2),
    }


if __name__ == "__main__":
    sys.exit(part.main("decode_steps", measure, __doc__))
