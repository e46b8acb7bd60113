"""Numbers that are compared: medians, percentiles, rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import mean, median
from typing import Any

#: Answers that come within so many seconds of each other came out of one batch.
BATCH_GAP = 0.25


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` % lie, between neighbours in proportion (as numpy's default)."""
    if not values:
        raise ValueError("nothing to take a percentile of")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is not between 0 and 100")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Count, median, mean, p95, best and worst of some durations."""
    return {
        "count": len(seconds),
        "median": round(median(seconds), 6),
        "mean": round(mean(seconds), 6),
        "p95": round(percentile(seconds, 95), 6),
        "best": round(min(seconds), 6),
        "worst": round(max(seconds), 6),
    }


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return between which two of the values the median lies, with this confidence, whatever they are distributed like.

    Each value is above the median as often as below, so that the number of those below is binomial (the interval of
    the sign test). Fewer than six values give their range, which is less certain.
    """
    ordered, count = sorted(values), len(values)
    tails = accumulate(math.comb(count, below) / 2**count for below in range(count // 2))
    dropped = max(0, sum(tail <= (1 - confidence) / 2 for tail in tails) - 1)  # on either side
    return ordered[dropped], ordered[-1 - dropped]


def paired(ours: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Return how many times longer the others took than ours in the same round: median and its interval."""
    ratios = [other / mine for mine, other in zip(ours, others, strict=False)]
    low, high = median_interval(ratios)
    return {"median": median(ratios), "interval": [round(low, 4), round(high, 4)], "rounds": len(ratios)}


@dataclass(frozen=True)
class Answered:
    """One request of a load: when it was sent and answered (seconds of one clock), and what it asked for."""

    sent: float
    answered: float
    tokens: int

    @property
    def seconds(self) -> float:
        return self.answered - self.sent


def in_window(answers: Sequence[Answered], opened: float) -> tuple[list[Answered], float]:
    """Return the answers that count, and the seconds in which they came.

    The window opens with the answers of one batch (the first at or after `opened`, and those that follow
    within BATCH_GAP) and closes with the last answer, so that it holds whole rounds: a server that answers
    eight at a time would else be credited with a batch that was computed before the window, or none. Answers
    at the opening itself do not count. Empty and 0.0 where nothing came after it.
    """
    ordered = sorted(answers, key=lambda answer: answer.answered)
    after = [answer for answer in ordered if answer.answered >= opened]
    if not after:
        return [], 0.0
    first = after[0].answered
    begin = max(answer.answered for answer in after if answer.answered <= first + BATCH_GAP)
    counted = [answer for answer in after if answer.answered > begin]
    return counted, (counted[-1].answered - begin if counted else 0.0)


def load_figures(answers: Sequence[Answered], opened: float) -> dict[str, Any]:
    """Return captions per second and latencies of a load. Raises ValueError if its window holds no answer."""
    counted, seconds = in_window(answers, opened)
    if not counted or seconds <= 0:
        raise ValueError(f"no caption was answered in the window; {len(answers)} were in all")
    latencies = [answer.seconds for answer in counted]
    return {
        "captions": len(counted),
        "seconds": round(seconds, 3),
        "captions_per_second": round(len(counted) / seconds, 4),
        "tokens_per_second": round(sum(answer.tokens for answer in counted) / seconds, 2),
        "latency_p50": round(percentile(latencies, 50), 4),
        "latency_p95": round(percentile(latencies, 95), 4),
        "latency_mean": round(mean(latencies), 4),
    }


def goal(
    name: str,
    target: str,
    measured: float,
    reached: bool,
    *,
    interval: Sequence[float] | None = None,
    floor: str = "",
    allows: float | None = None,
) -> dict[str, Any]:
    """Return a goal with what was measured, as written to a result file.

    `interval`: of 95 %, where rounds were paired. `floor` says what bounds the figure on this machine, and `allows` is
    the figure at that bound.
    """
    found: dict[str, Any] = {"goal": name, "target": target, "measured": round(measured, 3), "reached": bool(reached)}
    if interval is not None:
        found["interval"] = [round(side, 3) for side in interval]
    if floor and allows is not None:
        found |= {"floor": floor, "allows": round(allows, 3)}
    return found


def goal_in_words(found: dict[str, Any]) -> str:
    """Return a goal in a line: what was asked, what was measured, and what the machine allows."""
    text = f"{found['goal']}: {found['measured']:g}"
    if "interval" in found:
        text += " ({:g} to {:g})".format(*found["interval"])
    text += f", {found['target']}: {'reached' if found['reached'] else 'missed'}"
    if "allows" in found:
        text += f"; {found['floor']} allows {found['allows']:g}"
    return text


def growth(samples: Sequence[float], warm_share: float) -> float:
    """Return how much samples rose once warm: the median of the last third over that of the first, minus 1.

    The first `warm_share` of the samples is not counted. 0.0 means flat.
    """
    warm = samples[int(len(samples) * warm_share) :]
    if len(warm) < 3:
        return 0.0
    third = len(warm) // 3
    return median(warm[-third:]) / median(warm[:third]) - 1.0
