"""The decode loop's counts as custom metrics of the server, on Triton's own metrics port."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from mplug.decoding.loop import DecodeLoop, LoopStatistics

#: Metrics are not brought up to date more often than this while the loop is busy; each costs microseconds.
UPDATE_SECONDS = 0.1

COUNTERS = {
    "steps": ("mplug_decode_steps_total", "Steps of the decode loop"),
    "sequence_steps": ("mplug_decode_sequence_steps_total", "Sequences in each step, summed; over steps: mean batch"),
    "tokens": ("mplug_decode_tokens_total", "Tokens generated, counted once for all beams of a sequence"),
    "admitted": ("mplug_decode_admitted_total", "Requests admitted to a slot"),
    "finished": ("mplug_decode_finished_total", "Searches that came to their end"),
    "cancelled": ("mplug_decode_cancelled_total", "Requests whose client had gone"),
    "refused": ("mplug_decode_refused_total", "Requests refused because the queue was full"),
    "failed": ("mplug_decode_failed_total", "Requests answered with an error of the decoder"),
    "queue_seconds": ("mplug_decode_queue_seconds_total", "Seconds that admitted requests waited for their slot"),
}
GAUGES = {
    "batch": ("mplug_decode_batch", "Sequences that share the steps now"),
    "waiting": ("mplug_decode_waiting", "Requests that wait for a slot"),
}


class Metric(Protocol):
    """What the adapter's `Metric` offers."""

    def add(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...


#: Makes a metric: kind, name, description, labels.
MakeMetric = Callable[[str, str, str, Mapping[str, str]], Metric]


class DecodeMetrics:
    """Brings the metrics up to date; hand `update` to the loop as its observer."""

    def __init__(self, make: MakeMetric, labels: Mapping[str, str]) -> None:
        self._counters = {key: make("counter", *described, labels) for key, described in COUNTERS.items()}
        self._gauges = {key: make("gauge", *described, labels) for key, described in GAUGES.items()}
        self._told = LoopStatistics()
        self._next = 0.0

    def update(self, loop: DecodeLoop) -> None:
        """Tell what has changed; called by the loop after each round, and when it falls idle."""
        now = time.monotonic()
        if now < self._next and loop.batch:
            return
        self._next = now + UPDATE_SECONDS
        for key, counter in self._counters.items():
            value = getattr(loop.statistics, key)
            change = value - getattr(self._told, key)
            if change:
                counter.add(change)
                setattr(self._told, key, value)
        self._gauges["batch"].set(loop.batch)
        self._gauges["waiting"].set(loop.waiting)
