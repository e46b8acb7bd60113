"""The ablation's results as tables and a plot.

    python demo/ablation_report.py docs          # from docs/ablation.json

The tables stand between two marks in `ablation.md`; what is written around them stays.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, median, stdev

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

BEGIN, END = "<!-- results: written by demo/ablation.py -->", "<!-- end of results -->"
NAMES = {"1": "1 (connected everywhere)", "3": "3 (published base)", "never": "never (co-attention only)"}
BASELINE = "1"


def last_step_of_all(variants: dict[str, dict]) -> int:
    """Return the last step at which every network was looked at."""
    return max(set.intersection(*({look["step"] for look in variant["looks"]} for variant in variants.values())))


def at_step(looks: list[dict], step: int) -> float:
    """Return the share of answers right at a step."""
    return next(look["answers"] for look in looks if look["step"] == step)


def spread(values: list[float], digits: int = 1) -> str:
    """Return mean and standard deviation over seeds, as text."""
    scatter = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{scatter}"


def accuracy_table(document: dict) -> str:
    """Return a Markdown table, a row per stride: answers right at equal steps and at equal time, over the seeds."""
    seeds = document["seeds"]
    lines = [
        "| stride | fusion parameters | steps in equal time | answers right at equal steps, % | at equal time, % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in seeds[0]["variants"]:
        own = [seed["variants"][name] for seed in seeds]
        common = [last_step_of_all(seed["variants"]) for seed in seeds]
        steps = [100 * at_step(one["looks"], step) for one, step in zip(own, common, strict=True)]
        ratio = [one["steps"] / seed["variants"][BASELINE]["steps"] for one, seed in zip(own, seeds, strict=True)]
        lines.append(
            f"| {NAMES.get(name, name)} | {own[0]['parameters'] / 1e6:.2f} M | {spread(ratio, 2)} × "
            f"| {spread(steps)} | {spread([100 * one['looks'][-1]['answers'] for one in own])} |"
        )
    return "\n".join(lines)


def speed_table(document: dict) -> str:
    """Return a Markdown table, a row per image size: time as a share of stride 1's, medians and ranges of ratios."""
    sizes = document["base size, fusion encoder alone"]
    names = list(next(iter(sizes.values()))["training"])
    others = [name for name in names if name != BASELINE]
    lines = [
        "| image | "
        + " | ".join(f"{kind}, stride {name}" for kind in ("training", "inference") for name in others)
        + " |",
        "| --- |" + " ---: |" * (2 * len(others)),
    ]
    for size, kinds in sizes.items():
        cells = []
        for kind in ("training", "inference"):
            for name in others:
                ratios = [one / base for one, base in zip(kinds[kind][name], kinds[kind][BASELINE], strict=True)]
                cells.append(f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        lines.append(f"| {size} × {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(document: dict, output: Path) -> None:
    """Draw answers right against steps and against time, a line a seed, as PNG."""
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)
    for number, name in enumerate(document["seeds"][0]["variants"]):
        for seed in document["seeds"]:
            variant = seed["variants"][name]
            label = f"stride {NAMES.get(name, name)}" if seed is document["seeds"][0] else None
            right = [100 * look["answers"] for look in variant["looks"]]
            style = {"color": f"C{number}", "marker": "o", "markersize": 3, "label": label, "alpha": 0.8}
            panels[0].plot([look["step"] for look in variant["looks"]], right, **style)
            panels[1].plot([look["seconds"] for look in variant["looks"]], right, **style)
            width = variant["steps"] / len(variant["losses"])
            middles = [(index + 0.5) * width for index in range(len(variant["losses"]))]
            panels[2].plot(middles, variant["losses"], color=f"C{number}", label=label, alpha=0.8)
    panels[0].set(xlabel="steps", ylabel="% of answers right", title="at equal steps")
    panels[1].set(xlabel="seconds of CPU time", ylabel="% of answers right", title="at equal time")
    panels[2].set(xlabel="steps", ylabel="loss of answers", title="training loss", yscale="log")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def report(folder: Path) -> None:
    """Draw the plot, and put the tables into `ablation.md` where that page has the two marks."""
    document = json.loads((folder / "ablation.json").read_text())
    draw(document, folder / "ablation.png")
    tables = f"{accuracy_table(document)}\n\n{speed_table(document)}"
    page = folder / "ablation.md"
    written = page.read_text() if page.exists() else ""
    if BEGIN in written and END in written:
        before, after = written.split(BEGIN)[0], written.split(END)[1]
        page.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")
    print(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with ablation.json")
    report(parser.parse_args().folder)


if __name__ == "__main__":
    main()
