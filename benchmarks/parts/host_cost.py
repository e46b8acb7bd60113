"""What the host does for a step of the decoder on a GPU: the decode loop over a device that costs nothing.

    python -m benchmarks.parts.host_cost [--result FILE] [--rounds N]

The real loop and the real TensorRT decoder at the published base sizes run over CUDA calls that return at once;
requests are admitted, stepped, put together and answered as on a GPU. Measured is the decode thread's CPU time per
step, admissions included: what a GPU that is faster than this waits for. An admission copies the request's encoder
states to page-locked memory, unless they lie on the GPU already; with a single state each (`bookkeeping`) what is left
is the loop's own work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.measure import machine
from benchmarks.workspace import say
from mplug.contract import GraphSpec, decoder_prefill, decoder_step
from mplug.decoding.beam_search import SearchOptions
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.runtime.gpu.decoder import TensorRTDecoder
from mplug.runtime.gpu.engine import TensorType
from mplug.runtime.interface import StepChoices

#: The published base checkpoint at 384 pixels.
LAYERS, HEADS, HEAD_WIDTH, WIDTH, STATES, VOCABULARY = 12, 12, 64, 768, 577, 30522
TOKENS, END = 20, 102
#: Slots and beams of a row.
SIZES = ((1, 5), (8, 5), (32, 5), (32, 16))
#: Captions that each slot decodes in a round.
CAPTIONS = 20
WARM_STEPS = 3 * TOKENS
#: The goal, ms for 32 requests of 5 beams.
MOST_MS = 0.2


class FreeDevice:
    """`mplug.runtime.gpu.cuda.Device`, as far as the decoder uses it, without a device."""

    def allocate(self, size: int) -> Any:
        return SimpleNamespace(address=1 << 20, size=size, free=lambda: None)

    def pinned(self, size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)

    def record(self, work: Any) -> Any:
        work()
        return SimpleNamespace(launch=lambda: None, free=lambda: None)

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    free_pinned = zero = upload = download = copy = copy_rows = synchronize = _nothing


class FreeEngine:
    """`mplug.runtime.gpu.engine.Engine` and its context, without an engine."""

    recordable = True

    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec
        self._lengths: dict[str | int, int] = {}
        self.tensors = {
            tensor.name: TensorType(tensor.name, tensor in spec.inputs, {"FP32": "FLOAT"}.get(tensor.dtype, "INT32"), 4)
            for tensor in (*spec.inputs, *spec.outputs)
        }
        self._axes = {tensor.name: tensor.axes for tensor in (*spec.inputs, *spec.outputs)}

    def profile_of(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return 0

    def context(self, profile: int = 0) -> FreeEngine:
        return FreeEngine(self._spec)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._lengths |= dict(zip(self._axes[name], shape, strict=True))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._lengths.get(axis, axis) for axis in self._axes[name])

    def set_address(self, name: str, address: int) -> None:
        pass

    def run(self) -> None:
        pass


class FreeDecoder(TensorRTDecoder):
    """The decoder as it is served; a search is over after the tokens that it asked for."""

    def __init__(self) -> None:
        sizes = {"layers": LAYERS, "heads": HEADS, "head_width": HEAD_WIDTH, "hidden_size": WIDTH}
        engines = (FreeEngine(decoder_prefill(LAYERS)), FreeEngine(decoder_step(LAYERS)))
        super().__init__(FreeDevice(), *engines, sizes)
        self._left = np.zeros(64, np.int32)  # tokens, by slot

    def load(self, slot: int, search: Mapping[str, np.ndarray]) -> None:
        super().load(slot, search)
        self._left[slot] = TOKENS

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        self._left[target] = self._left[source]

    def step(self, slots: int, beams: int, count: int) -> list[StepChoices]:
        chosen = super().step(slots, beams, count)
        for choices in chosen:
            self._left[:slots] -= 1
            choices.over[...] = self._left[:slots] <= 0
        return chosen


class Sampler:
    """The loop's observer: CPU time of its thread when it is warm, and when the last requests are about to end."""

    def __init__(self) -> None:
        self._due = [WARM_STEPS, TOKENS * (CAPTIONS - 1)]  # reading the clock may cost as much as a step
        self.samples: list[tuple[float, int]] = []

    def __call__(self, loop: DecodeLoop) -> None:
        if self._due and loop.statistics.steps >= self._due[0]:
            self._due.pop(0)
            self.samples.append((time.thread_time(), loop.statistics.steps))


def milliseconds(slots: int, beams: int, length: int) -> float:
    """Return the decode thread's CPU time per step with so many slots in use, by requests of `length` states, ms."""
    sampler, number, answered = Sampler(), slots * CAPTIONS, threading.Semaphore(0)
    loop = DecodeLoop(FreeDecoder(), max_slots=slots, max_queue=number, max_cache_bytes=64 << 30, observer=sampler)
    states, mask = np.zeros((length, WIDTH), np.float32), np.ones(length, np.int32)
    options = SearchOptions(beams, 8, TOKENS, 1, 0.6, END)
    try:
        for _ in range(number):
            loop.submit(
                DecodeRequest(
                    encoder_states=states,
                    encoder_mask=mask,
                    prefix=[101],
                    options=options,
                    token_range=(0, VOCABULARY),
                    done=lambda _: answered.release(),
                    failed=lambda error: answered.release(),
                )
            )
        for _ in range(number):
            if not answered.acquire(timeout=60):
                raise RuntimeError("the decode loop does not answer")
    finally:
        loop.stop()
    if loop.statistics.finished != number:
        raise RuntimeError(f"{loop.statistics.failed} of {number} requests failed")
    (began, first), (ended, last) = sampler.samples
    return (ended - began) / (last - first) * 1e3


def main() -> int:
    """Measure every size and write or print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, metavar="FILE", help="the JSON to write (default: print it)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="of which the median is taken (default: 9)")
    options = parser.parse_args()
    rows = []
    for slots, beams in SIZES:
        taken = [milliseconds(slots, beams, STATES) for _ in range(options.rounds)]
        bare = [milliseconds(slots, beams, 1) for _ in range(options.rounds)]
        rows.append(
            {
                "slots": slots,
                "beams": beams,
                "ms": round(statistics.median(taken), 4),
                "least": round(min(taken), 4),
                "bookkeeping": round(statistics.median(bare), 4),
            }
        )
        say(f"{slots} x {beams}: {rows[-1]['ms']:.3f} ms a step, {rows[-1]['bookkeeping']:.3f} of it bookkeeping")
    goal = next(row["ms"] for row in rows if (row["slots"], row["beams"]) == (32, 5))
    document = {
        "part": "host_cost",
        "machine": machine.describe() | {"environment": machine.environment()},
        "results": rows,
        "goals": [
            {
                "goal": "host time per step at 32 x 5",
                "target": f"below {MOST_MS} ms",
                "measured": goal,
                "reached": goal < MOST_MS,
            }
        ],
    }
    text = json.dumps(document, indent=1) + "\n"
    if options.result is None:
        print(text, end="")
    else:
        options.result.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
