"""Draw a training run: losses, and what was measured on the way, against samples seen.

    python builders/train/plot.py build/train/log.jsonl --output build/train/training.png

Several logs, in order, are drawn as one run that was continued. A record is a line of JSON: numbers in it are losses,
those under `metrics` or `look` are measured; `stage` or `leg` names the part of a curriculum.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

#: Numbers that are neither losses nor metrics.
BESIDE = frozenset({"minutes", "samples", "step", "per_second", "learning_rate", "taken"})
MEASURED = ("metrics", "look")
#: Above this many curves a panel's legend would hide them.
LEGEND_BESIDE = 8


def read_logs(paths: Iterable[Path]) -> list[dict]:
    """Records of runs that follow each other, samples counted through."""
    records, before = [], 0
    for path in paths:
        run = [json.loads(line) for line in path.read_text().splitlines()]
        records += [{**record, "samples": record.get("samples", 0) + before} for record in run]
        before = records[-1]["samples"] if records else 0
    return records


def numbers(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested dicts, each with the names on the way to it: `held_out recall`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{name} {key.replace('_', ' ')}".strip())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def curves(records: Iterable[dict], *, measured: bool) -> dict[str, list[tuple[float, float]]]:
    """Name → points (thousand samples, value), of what is measured or of the losses."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if measured:
            values = {key: record[key] for key in MEASURED if key in record}
            points = (pair for inner in values.values() for pair in numbers(inner))
        else:
            flat = {key: value for key, value in record.items() if key not in BESIDE | {*MEASURED, "losses"}}
            points = numbers({**flat, **record.get("losses", {})})
        for name, value in points:
            found.setdefault(name, []).append((record["samples"] / 1000, value))
    return found


def draw(records: list[dict], output: Path) -> None:
    """Write the plot as PNG."""
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 5), constrained_layout=True)
    for axes, measured, title in ((panels[0], False, "Losses"), (panels[1], True, "Measured on the way")):
        found = curves(records, measured=measured)
        for number, (name, points) in enumerate(found.items()):
            style = ("-", "--", ":", "-.")[number // 10 % 4]
            marker = "." if measured or len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), label=name, linestyle=style, marker=marker, linewidth=1.2)
        axes.set(xlabel="thousand samples", title=title)
        axes.grid(alpha=0.3)
        if not measured and found and all(value > 0 for points in found.values() for _, value in points):
            axes.set_yscale("log")
        stages = [(record.get("stage", record.get("leg")), record["samples"]) for record in records]
        for (first, _), (second, samples) in pairwise([pair for pair in stages if pair[0] is not None]):
            if first != second:
                axes.axvline(samples / 1000, color="grey", linewidth=0.6)
        if found:
            beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(found) > LEGEND_BESIDE else {}
            axes.legend(fontsize=7, **beside)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    draw(read_logs(options.logs), options.output)


if __name__ == "__main__":
    main()
