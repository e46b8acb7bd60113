"""A plot per part, beside its result file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws files, needs no screen

from matplotlib import pyplot, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import STAGE_TITLES

OURS, PALER, BASELINE, FLOOR = "#1b6ca8", "#7fb3d5", "#c8553d", "#9a9a9a"
QUANTISED = "#e0a030"
COLOURS = {
    "triton": OURS,
    "in_process": PALER,
    "blip": BASELINE,
    "uncached": FLOOR,
    "triton_int8": QUANTISED,
    "ours_int8": QUANTISED,
    "ours": OURS,
    "ours_one_slot": PALER,
    "ours_repeated_pictures": "#2a9d8f",
    "litserve_blip": BASELINE,
}
SIZE = (9.0, 3.8)  # inches
DOTS_PER_INCH = 130


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw a part's result file to a PNG."""
    figure = PLOTS[document["part"]](document["results"])
    machine = document["machine"]
    figure.text(
        0.995,
        0.005,
        f"{machine['cpu']}, {machine['cores']} cores, {document['precision']}, {machine['date'][:10]}",
        ha="right",
        va="bottom",
        fontsize=6,
        color="#555555",
    )
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=DOTS_PER_INCH)
    pyplot.close(figure)


def _one_caption(results: dict[str, Any]) -> Figure:
    figure, axes = pyplot.subplots(figsize=(9.0, 2.8))
    contenders = list(reversed(results["contenders"].items()))
    for row, (name, each) in enumerate(contenders):
        axes.barh(row, each["median"], color=COLOURS[name], height=0.6)
        axes.plot(each["rounds"], [row] * len(each["rounds"]), "|", color="black", alpha=0.5)
        axes.text(each["median"] * 1.08, row + 0.36, f"{each['median']:.2f} s, {each['times_ours']:.1f}×", fontsize=8)
    axes.set_yticks(range(len(contenders)), [each["title"] for _, each in contenders])
    axes.set_xscale("log")
    medians = [each["median"] for _, each in contenders]
    axes.set_xlim(min(medians) / 4, 3 * max(medians))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("seconds for one caption (logarithmic); strokes are single rounds")
    return _plain(figure, axes)


def _tasks(results: dict[str, Any]) -> Figure:
    figure, axes = pyplot.subplots(figsize=SIZE)
    bars = [(each["title"], each["ours"], each["pytorch"]) for each in results["tasks"].values()]
    bars.append((results["further"]["title"], results["further"]["further"], None))
    for row, (_, ours, pytorch) in enumerate(reversed(bars)):
        for seconds, place, colour in ((ours, 0.2, OURS), (pytorch, -0.2, BASELINE)):
            if seconds is not None:
                axes.barh(row + place, seconds["median"] * 1000, color=colour, height=0.38)
    axes.set_yticks(range(len(bars)), [title for title, *_ in reversed(bars)])
    axes.set_xlabel("ms for one request: ours through Triton (blue), PyTorch (red)")
    return _plain(figure, axes)


def _decode_steps(results: dict[str, Any]) -> Figure:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=SIZE)
    for position, colour in zip(sorted({step["position"] for step in results["steps"]}), (PALER, OURS), strict=False):
        steps = [step for step in results["steps"] if step["position"] == position]
        batches = [step["batch"] for step in steps]
        left.plot(batches, [step["median"] * 1000 for step in steps], "o-", color=colour, label=f"position {position}")
    left.plot(batches, [step["floor"] * 1000 for step in steps], "--", color=FLOOR, label=f"floor, position {position}")
    left.set(xscale="log", yscale="log", xlabel="sequences in the batch", ylabel="ms a step")
    left.set_xticks(batches, [str(batch) for batch in batches])
    left.minorticks_off()
    left.legend(frameon=False)
    names = [name for name in results["stages"] if name != "whole"]
    for row, name in enumerate(reversed(names)):
        stage = results["stages"][name]
        right.barh(row, stage["seconds"] * 1000, color=OURS, height=0.6)
        if "floor" in stage:
            right.plot(
                [stage["floor"] * 1000] * 2,
                [row - 0.4, row + 0.4],
                color=BASELINE,
                label="floor" if name == "step" else None,
            )
    right.set_yticks(range(len(names)), [STAGE_TITLES[name] for name in reversed(names)])
    right.set_xlabel("ms of one caption")
    right.legend(frameon=False)
    return _plain(figure, left, right)


def _throughput(results: dict[str, Any]) -> Figure:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=SIZE)
    for name, series in results["series"].items():
        clients = [each["clients"] for each in series]
        style = {"color": COLOURS[name], "label": results["titles"][name]}
        left.plot(clients, [each["captions_per_second"] for each in series], "o-", **style)
        right.plot(clients, [each["latency_p50"] for each in series], "o-", **style)
        right.plot(clients, [each["latency_p95"] for each in series], ":", color=COLOURS[name])
    left.set(ylabel="captions a second", ylim=(0, None))
    right.set(yscale="log", ylabel="latency, s: median, p95 dotted")
    every = sorted({each["clients"] for series in results["series"].values() for each in series})
    for axes in (left, right):
        axes.set(xscale="log", xlabel="clients")
        axes.set_xticks(every, [str(clients) for clients in every])
        axes.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    return _plain(figure, left, right)


def _soak(results: dict[str, Any]) -> Figure:
    figure, (above, below) = pyplot.subplots(2, 1, figsize=SIZE, sharex=True)
    samples = results["samples"]
    seconds = [sample["second"] for sample in samples]
    names = sorted({name for sample in samples for name in sample["processes"]})
    levels = [[sample["processes"].get(name, 0.0) for sample in samples] for name in names]
    above.stackplot(seconds, levels, labels=[name.rsplit(" ", 1)[0] for name in names], alpha=0.8)
    above.set(ylabel="resident MiB", ylim=(0, None))
    above.legend(frameon=False, fontsize=7, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1))
    below.plot(seconds, [sample["in_flight"] for sample in samples], color=FLOOR, label="captions in flight")
    below.plot(seconds, [sample["decode_batch"] for sample in samples], color=OURS, label="decode batch")
    below.set(xlabel="seconds", ylabel="requests", ylim=(0, None))
    below.legend(frameon=False, fontsize=7, ncols=2)
    return _plain(figure, above, below)


def _plain(figure: Figure, *all_axes: Axes) -> Figure:
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="both", alpha=0.2)
        axes.set_axisbelow(True)
    return figure


PLOTS: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "one_caption": _one_caption,
    "decode_steps": _decode_steps,
    "throughput": _throughput,
    "soak": _soak,
    "tasks": _tasks,
}
