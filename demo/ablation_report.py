"""The ablation's results as a table and a plot.

    python demo/ablation_report.py docs          # from docs/ablation.json

The table stands between two marks in `ablation.md`; what is written around it stays.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

BEGIN, END = "<!-- results: written by demo/ablation.py -->", "<!-- end of results -->"
NAMES = {"never": "never (co-attention only)"}


def table(document: dict) -> str:
    """Markdown: one row per stride."""
    base = document.get("base size, fusion encoder alone", {})
    lines = [
        "| stride | fusion parameters | training speed | inference time | base size: training, inference time "
        "| answers right | captions right |",
        "|---|---|---|---|---|---|---|",
    ]
    first = next(iter(base.values()), None)
    for name, found in document["variants"].items():
        at_base = "—"
        if name in base:
            at_base = " / ".join(f"{base[name][kind] / first[kind]:.2f}" for kind in ("training", "inference"))
        shares = [
            f"{100 * found[f'{key} right']:.1f} ± {100 * found[f'{key} standard error']:.1f} %"
            if f"{key} right" in found
            else "not yet measured"
            for key in ("answers", "captions")
        ]
        lines.append(
            f"| {NAMES.get(name, name)} | {found['parameters'] / 1e6:.2f} M "
            f"| {found['training samples per second, ratio']:.2f} × "
            f"| {found['inference time, ratio']:.2f} | {at_base} | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


def draw(document: dict, output: Path) -> None:
    """Accuracy on the way, loss, and accuracy against speed, as PNG."""
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)
    for name, found in document["variants"].items():
        label = f"stride {NAMES.get(name, name)}"
        steps = [look["step"] for look in found["looks"]]
        (line,) = panels[0].plot(steps, [100 * look["answers"] for look in found["looks"]], marker="o", label=label)
        panels[0].plot(steps, [100 * look["captions"] for look in found["looks"]], ":", color=line.get_color())
        width = document["steps"] / len(found["losses"])
        middles = [(index + 0.5) * width for index in range(len(found["losses"]))]
        panels[1].plot(middles, found["losses"], color=line.get_color(), label=label)
        panels[2].errorbar(
            found["training samples per second, ratio"],
            100 * found["answers right"],
            yerr=100 * found["answers standard error"],
            marker="o",
            capsize=3,
            color=line.get_color(),
            label=label,
        )
    panels[0].set(xlabel="steps", ylabel="% right", title="answers (solid), captions (dotted)")
    panels[1].set(xlabel="steps", ylabel="answer + caption loss", title="training loss", yscale="log")
    panels[2].set(xlabel="training speed, stride 1 = 1", ylabel="% of answers right", title="accuracy against speed")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def report(folder: Path) -> None:
    """Draw the plot, and put the table into `ablation.md` where that page has the two marks.

    Of a run in which speed alone was measured there is nothing to draw.
    """
    document = json.loads((folder / "ablation.json").read_text())
    if all("looks" in found for found in document["variants"].values()):
        draw(document, folder / "ablation.png")
    page = folder / "ablation.md"
    written = page.read_text() if page.exists() else ""
    if BEGIN in written and END in written:
        before, after = written.split(BEGIN)[0], written.split(END)[1]
        page.write_text(f"{before}{BEGIN}\n\n{table(document)}\n\n{END}{after}")
    print(table(document))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with ablation.json")
    report(parser.parse_args().folder)


if __name__ == "__main__":
    main()
