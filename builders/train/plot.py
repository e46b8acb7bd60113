"""Draw a training run: losses and looks at fixed scenes against samples seen.

    python builders/train/plot.py build/train/log.jsonl --output checkpoints/demo/training.png

Several logs, in order, are drawn as one run that was continued.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def read_logs(paths: Iterable[Path]) -> list[dict]:
    """Records of runs that follow each other, samples counted through."""
    records, before = [], 0
    for path in paths:
        run = [json.loads(line) for line in path.read_text().splitlines()]
        records += [{**record, "samples": record["samples"] + before} for record in run]
        before = records[-1]["samples"]
    return records


def draw(records: list[dict], output: Path) -> None:
    """Write the plot as PNG."""
    figure, (losses, looks) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for key, label in (("patch", "patch labels"), ("caption", "caption")):
        points = [(r["samples"] / 1000, r[key]) for r in records if r.get(key)]
        losses.plot(*zip(*points, strict=True), label=label)
    losses.set(xlabel="thousand samples", ylabel="cross-entropy", title="Loss", yscale="log")
    for split, colour in (("train", "tab:blue"), ("held_out", "tab:orange")):
        name = {"train": "training styles", "held_out": "Twemoji"}[split]
        points = [(r["samples"] / 1000, r["look"][f"{split}_patches"]) for r in records if "look" in r]
        looks.plot(*zip(*points, strict=True), colour, linestyle=":", label=f"patches, {name}")
        points = [(r["samples"] / 1000, r["look"][split]["recall"]) for r in records if split in r.get("look", {})]
        if points:
            looks.plot(*zip(*points, strict=True), colour, marker="o", label=f"object recall, {name}")
    looks.set(xlabel="thousand samples", ylabel="share right", ylim=(0, 1), title="200 fixed scenes, unaugmented")
    for axes in (losses, looks):
        for first, second in pairwise(records):
            if first["stage"] != second["stage"]:
                axes.axvline(second["samples"] / 1000, color="grey", linewidth=0.6)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    draw(read_logs(options.logs), options.output)


if __name__ == "__main__":
    main()
