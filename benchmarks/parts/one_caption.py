"""One caption of 20 tokens by 5 beams: ours through Triton beside the baselines, in interleaved rounds.

    python -m benchmarks.parts.one_caption [--preset base|quick] [--result FILE]

In each round every contender captions one picture, each round begins with another contender, and no picture
comes twice, so that neither a slow minute of the machine nor a cache favours anyone. Goals are ratios within a
round: their median, and the interval in which it lies. The contender without a key-value cache takes part in the first
rounds only: one caption takes it some ten seconds. Rounds of ours alone, through Triton and without, follow.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.contenders.captioner import Captioner, CaptionerProcess
from benchmarks.contenders.triton import TritonCaptioner
from benchmarks.measure.figures import goal, paired, summary
from benchmarks.measure.floors import caption_seconds
from benchmarks.measure.machine import Limits, measure_limits
from benchmarks.measure.pictures import Pictures
from benchmarks.parts import part
from benchmarks.presets import BEAMS, TOKENS, ModelSizes
from benchmarks.workspace import Workspace, say
from mplug.server.command import TritonServer

TRITON, DIRECT, INT8, BLIP, UNCACHED = "triton", "in_process", "triton_int8", "blip", "uncached"
TITLES = {
    TRITON: "ours, through Triton over gRPC",
    DIRECT: "ours, stages in one process",
    INT8: "ours in int8, through Triton over gRPC",
    BLIP: "BLIP, transformers",
    UNCACHED: "our PyTorch network without a cache, fp32",
}
WARM_CAPTIONS = 3
#: Our captions alone that follow the rounds of all, for each of those.
ROUNDS_OF_OURS = 2
#: Warming up the slow one: a few tokens touch all of its code.
SLOW_WARM_TOKENS = 2


def measure(workspace: Workspace) -> dict[str, Any]:
    """Run all rounds; `results` per contender, ratios to ours, and the goals."""
    preset, precision = workspace.preset, workspace.build_info()["precision"]
    say("measuring bandwidth and arithmetic")
    limits = measure_limits(preset.matrix_side, preset.array_mib)
    pictures = Pictures(len(TITLES) * ((1 + ROUNDS_OF_OURS) * preset.rounds + WARM_CAPTIONS))
    precisions = {}
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
            precisions[name] = process.precision
        for name, captioner in captioners.items():
            for _ in range(1 if name == UNCACHED else WARM_CAPTIONS):
                captioner.caption(pictures.next(), SLOW_WARM_TOKENS if name == UNCACHED else TOKENS)
        taken = _rounds(captioners, pictures, preset.rounds, preset.slow_rounds)
        say("rounds of ours alone")
        alone = {name: captioners[name] for name in (TRITON, DIRECT)}
        ours = _rounds(alone, pictures, ROUNDS_OF_OURS * preset.rounds, 0)
    return outcome(taken, ours, preset.sizes, precision, limits, precisions)


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


def outcome(
    taken: dict[str, list[float]],
    alone: dict[str, list[float]],
    sizes: ModelSizes,
    precision: str,
    limits: Limits,
    precisions: dict[str, str],
) -> dict[str, Any]:
    """Turn the seconds of every round by contender into the part's `results` and `goals`.

    `taken` are the rounds of all, `alone` those of ours with and without Triton; `precisions` says what baselines
    compute in that chose it.
    """
    floors = {
        name: caption_seconds(sizes, of, limits, beams=BEAMS, tokens=TOKENS)
        for name, of in ((TRITON, precision), (INT8, "int8"))
    }
    ours = median(taken[TRITON])
    contenders = {}
    for name, times in taken.items():
        computed_in = f", {precisions[name]}" if precisions.get(name) else ""
        contenders[name] = {
            "title": TITLES[name] + computed_in,
            **summary(times),
            "times_ours": round(median(times) / ours, 3),
            "rounds": [round(seconds, 4) for seconds in times],
        }
        if name in floors:
            contenders[name]["floor"] = round(floors[name], 4)
    through, direct = ([*taken[name], *alone[name]] for name in (TRITON, DIRECT))
    overhead = paired(direct, through)
    percent = [100 * (side - 1) for side in (overhead["median"], *overhead["interval"])]

    def faster(name: str, mine: str, other: str, least: float) -> dict[str, Any]:
        found, floor = paired(taken[mine], taken[other]), floors[mine]
        return goal(
            name,
            f"at least {least:g}",
            found["median"],
            found["median"] >= least,
            interval=found["interval"],
            floor=f"the floor of {floor * 1000:.0f} ms",
            allows=median(taken[other]) / floor,
        )

    goals = [
        faster("one caption, times faster than BLIP", TRITON, BLIP, 3),
        faster("one caption in int8, times faster than BLIP", INT8, BLIP, 4),
        faster("one caption in int8, times faster than without a cache", INT8, UNCACHED, 32),
        goal("overhead of Triton and BLS, percent", "under 5", percent[0], percent[0] < 5, interval=percent[1:]),
    ]
    results = {
        "contenders": contenders,
        "triton_overhead": {
            "percent": round(percent[0], 3),
            "interval": [round(side, 3) for side in percent[1:]],
            "rounds": overhead["rounds"],
        },
        "limits": asdict(limits),
    }
    return {"results": results, "goals": goals}


if __name__ == "__main__":
    sys.exit(part.main("one_caption", measure, __doc__))
