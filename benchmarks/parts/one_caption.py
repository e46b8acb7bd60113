"""One caption of 20 tokens by 5 beams: ours through Triton beside the baselines, median of interleaved rounds.

    python -m benchmarks.parts.one_caption [--preset base|quick] [--result FILE]

In each round every contender captions one picture, each round begins with another contender, and no picture
comes twice, so that neither a slow minute of the machine nor a cache favours anyone. The contender without a
key-value cache takes part in the first rounds only: one caption takes it some ten seconds.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing
from statistics import median
from typing import Any

from benchmarks.contenders.captioner import Captioner, CaptionerProcess
from benchmarks.contenders.triton import TritonCaptioner
from benchmarks.measure.figures import goal, summary
from benchmarks.measure.pictures import Pictures
from benchmarks.parts import part
from benchmarks.presets import TOKENS
from benchmarks.workspace import Workspace, say
from mplug.server.command import TritonServer

TRITON, DIRECT, INT8, BLIP, UNCACHED = "triton", "in_process", "triton_int8", "blip", "uncached"
TITLES = {
    TRITON: "ours, through Triton over gRPC",
    DIRECT: "ours, stages in one process",
    INT8: "ours in int8, through Triton over gRPC",
    BLIP: "BLIP, transformers, bf16",
    UNCACHED: "our PyTorch network without a cache, fp32",
}
WARM_CAPTIONS = 3
#: Warming up the slow one: a few tokens touch all of its code.
SLOW_WARM_TOKENS = 2


def measure(workspace: Workspace) -> dict[str, Any]:
    """Run all rounds; `results` per contender, ratios to ours, and the goals."""
    preset = workspace.preset
    pictures = Pictures(len(TITLES) * (preset.rounds + WARM_CAPTIONS))
    with ExitStack() as stack:
        server = stack.enter_context(TritonServer(workspace.repository))
        int8 = stack.enter_context(TritonServer(workspace.at_precision("int8").prepare()))
        captioners: dict[str, Captioner] = {
            TRITON: stack.enter_context(closing(TritonCaptioner(server.grpc_url))),
            INT8: stack.enter_context(closing(TritonCaptioner(int8.grpc_url))),
        }
        for name in (DIRECT, BLIP, UNCACHED):
            say(f"starting: {TITLES[name]}")
            process = CaptionerProcess(f"benchmarks.contenders.{name}", workspace)
            captioners[name] = stack.enter_context(closing(process))
        for name, captioner in captioners.items():
            for _ in range(1 if name == UNCACHED else WARM_CAPTIONS):
                captioner.caption(pictures.next(), SLOW_WARM_TOKENS if name == UNCACHED else TOKENS)
        taken = _rounds(captioners, pictures, preset.rounds, preset.slow_rounds)
    return outcome(taken)


def _rounds(
    captioners: dict[str, Captioner], pictures: Pictures, rounds: int, slow_rounds: int
) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in captioners}
    names = list(captioners)
    for number in range(rounds):
        turn = number % len(names)
        order = [name for name in names[turn:] + names[:turn] if name != UNCACHED or number < slow_rounds]
        for name in order:
            picture = pictures.next()
            began = time.perf_counter()
            ids = captioners[name].caption(picture, TOKENS)
            taken[name].append(time.perf_counter() - began)
            if len(ids) != 1 + TOKENS:
                raise RuntimeError(f"{TITLES[name]}: {len(ids) - 1} tokens instead of {TOKENS}")
        latest = ", ".join(f"{name} {taken[name][-1]:.2f} s" for name in names if name in order)
        say(f"round {number + 1} of {rounds}: {latest}")
    return taken


def outcome(taken: dict[str, list[float]]) -> dict[str, Any]:
    """Turn the seconds of every round by contender into the part's `results` and `goals`."""
    medians = {name: median(times) for name, times in taken.items()}
    ours = medians[TRITON]
    # Of the same rounds: both saw the same minute of the machine.
    overhead = median(through / direct for through, direct in zip(taken[TRITON], taken[DIRECT], strict=True)) - 1
    results = {
        "contenders": {
            name: {
                "title": TITLES[name],
                **summary(times),
                "times_ours": round(medians[name] / ours, 3),
                "rounds": [round(seconds, 4) for seconds in times],
            }
            for name, times in taken.items()
        },
        "triton_overhead": round(overhead, 4),
    }
    goals = [
        goal("one caption, times faster than BLIP", "at least 2.5", medians[BLIP] / ours, medians[BLIP] / ours >= 2.5),
        goal(
            "one caption, times faster than without a cache",
            "at least 30",
            medians[UNCACHED] / ours,
            medians[UNCACHED] / ours >= 30,
        ),
        goal("overhead of Triton and BLS, percent", "under 5", overhead * 100, overhead < 0.05),
        goal(
            "one caption in int8, times faster than BLIP",
            "at least 2.5",
            medians[BLIP] / medians[INT8],
            medians[BLIP] / medians[INT8] >= 2.5,
        ),
    ]
    return {"results": results, "goals": goals}


if __name__ == "__main__":
    sys.exit(part.main("one_caption", measure, __doc__))
