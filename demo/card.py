"""Write the card of a demo checkpoint, its README.md, from figures.json and what was written by hand.

    python demo/card.py checkpoints/demo

No figure of a table is typed by hand: all come from figures.json (demo/figures.py), the sizes from the checkpoint, the
frame from card_template.txt. What a person says of the checkpoint stands in CHECKPOINT/notes.md, if there is one; the
figures.json of a run with another seed, copied to CHECKPOINT/figures-seed-1.json, lets the card show how far runs
scatter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders.evaluation.report import markdown_table
from builders.evaluation.tasks import Outcome
from builders.train.run_log import PLOT
from demo.figures import FIGURES, ROOT, FiguresError
from demo.records import TITLES
from mplug.checkpoint import CheckpointError, find_checkpoint, read_state_dict
from mplug.config import ConfigError, read_config

LINE = 120  # characters
CARD, NOTES = "README.md", "notes.md"
OTHER_SEEDS = "figures-seed-*.json"
TEMPLATE = Path(__file__).with_name("card_template.txt")
EASY_VQA = "easy-vqa"  # the part that is of weights fine-tuned for it
#: What the checkpoint is to reach, in hundredths: task, measure, and the aim in each split.
AIMS = (
    ("caption", "object recall", {"test": 97, "test-twemoji": 78, "test-openmoji": 45}),
    ("caption", "exact", {"test": 88, "test-twemoji": 62, "test-openmoji": 30}),
    ("caption", "threes counted", {"test": 85, "test-twemoji": 75}),
    ("vqa", "accuracy", {"test": 96, "test-twemoji": 87, "test-openmoji": 75, EASY_VQA: 99}),
    ("retrieval", "image → text, R@1", {"test": 95, "test-twemoji": 82, "test-openmoji": 55}),
    ("retrieval", "text → image, R@1", {"test": 95, "test-twemoji": 82, "test-openmoji": 55}),
    ("grounding", "IoU ≥ 0.5", {"test": 94, "test-twemoji": 93, "test-openmoji": 85}),
    ("nlvr", "accuracy", {"test": 91, "test-twemoji": 85}),
    ("entail", "accuracy", {"test": 97, "test-twemoji": 94}),
    ("video", "accuracy", {"test": 96, "test-twemoji": 80}),
)
SHOWN_FROM = ("test", "test-twemoji")  # splits whose first mistakes are shown
#: Drawing style → how the licences name it.
STYLES = {
    "noto": "Noto Emoji (Apache-2.0, Google)",
    "noto-v1": "its older version (Apache-2.0)",
    "fluent-flat": "Fluent Emoji flat (MIT, Microsoft)",
    "fluent-3d": "Fluent Emoji 3D (MIT, Microsoft)",
    "fxemoji": "FxEmojis (Apache-2.0, Mozilla)",
    "streamline": "Streamline Emojis (CC BY 4.0, Streamline)",
    "emojione": "EmojiOne 2.3 (CC BY 4.0, EmojiOne)",
    "openclipart": "Open Clip Art (public domain)",
    "openclipart-more": "more of it",
}

Figures = dict[str, Any]


def read_figures(path: Path) -> Figures:
    """Return a figures.json. Raises FiguresError for a file that is none."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        outcomes = figures["outcomes"]
    except OSError as error:
        raise FiguresError(f"{path}: {error.strerror}; python demo/figures.py CHECKPOINT measures them") from None
    except (ValueError, KeyError, TypeError):
        raise FiguresError(f"{path}: is no figures.json of demo/figures.py") from None
    if not outcomes:
        raise FiguresError(f"{path}: holds no figures")
    return figures


def card_of(checkpoint: Path) -> str:
    """Return the card's text. Raises FiguresError, CheckpointError and ConfigError for what is missing or wrong."""
    figures = read_figures(checkpoint / FIGURES)
    files = find_checkpoint(checkpoint)
    if figures["weights_sha256"] != files.sha256():
        raise FiguresError(f"{checkpoint / FIGURES}: are those of other weights; measure again with demo/figures.py")
    others = [read_figures(path) for path in sorted(checkpoint.glob(OTHER_SEEDS))]
    notes = checkpoint / NOTES
    config = read_config(files.config, files.bert_config)
    parameters = sum(tensor.numel() for tensor in read_state_dict(files.weights).values())
    values = {
        "root": os.path.relpath(ROOT, checkpoint),
        "parameters": f"{parameters / 1e6:.0f}",
        "megabytes": f"{files.weights.stat().st_size / 1e6:.0f}",
        "prompt": config.prompt,
        "tokens": f"{len(files.vocabulary.read_text(encoding='utf-8').splitlines()):,}",
        "network": _network(config),
        "items": f"{max(outcome['items'] for outcome in _own(figures)):,}",
        "through": figures["evaluation"]["through"],
        "curve": " and the curve below" if (checkpoint / PLOT).exists() else "",
        "scores": _scores(figures),
        "fine_tuned": _fine_tuned(figures, os.path.relpath(ROOT, checkpoint)),
        "left_out": "".join(f"\nLeft out: {title}: {why}\n" for title, why in figures["left_out"].items()),
        "aims": _aims(figures),
        "scatter": _scatter([figures, *others]) if others else "",
        "notes": f"\n{notes.read_text(encoding='utf-8').strip()}\n" if notes.exists() else "",
        "training": _training(figures, checkpoint),
        "mistakes": _mistakes(figures),
        "styles": _styles(figures),
    }
    return _filled(Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values))


def write_card(checkpoint: Path) -> Path:
    """Write CHECKPOINT/README.md and return its path; raises what `card_of` raises."""
    path = checkpoint / CARD
    path.write_text(card_of(checkpoint), encoding="utf-8")
    return path


def _filled(text: str) -> str:
    """Break the lines of paragraphs that became too long."""
    paragraphs = text.split("\n\n")
    for index, paragraph in enumerate(paragraphs):
        long = max(map(len, paragraph.splitlines()), default=0) > LINE
        if long and not paragraph.lstrip().startswith(("|", "#", "-", "!", "```")):
            paragraphs[index] = textwrap.fill(paragraph, LINE, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(paragraphs).rstrip() + "\n"


def _network(config: Any) -> str:
    vision, text = config.vision, config.text
    stem = f" behind convolutions of {', '.join(map(str, vision.stem))} channels" if vision.stem else ""
    return (
        f"vision transformer of {vision.layers} layers, width {vision.width}, patches of {vision.patch_size} in "
        f"{vision.image_size} × {vision.image_size} pixels{stem}; {text.text_encoder_layers} text layers; "
        f"{text.fusion_layers} fusion layers, stride {text.stride_layer}; {text.text_decode_layers} decoder layers"
    )


def _own(figures: Figures) -> list[dict[str, Any]]:
    """What was measured of the checkpoint as it is."""
    return [outcome for outcome in figures["outcomes"] if outcome["part"] != EASY_VQA]


def _fine_tuned(figures: Figures, root: str) -> str:
    """What the checkpoint reaches on easy-vqa after training on it, with a line before it; empty if not measured."""
    for outcome in figures["outcomes"]:
        if outcome["part"] == EASY_VQA:
            return (
                f"\nFine-tuned on easy-vqa ([how]({root}/docs/evaluation.md#easy-vqa)), it answers "
                f"{100 * outcome['metrics']['accuracy']:.1f} % of the {outcome['items']:,} test questions.\n"
            )
    return ""


def _scores(figures: Figures) -> str:
    """The table of an evaluation, as builders/evaluate.py --markdown writes it."""
    found = _own(figures)
    tasks = list(dict.fromkeys(each["task"] for each in found))
    outcomes = [
        Outcome(each["task"], each["split"], each["items"], each["metrics"], [], [])
        for each in sorted(found, key=lambda each: tasks.index(each["task"]))
    ]
    return markdown_table(outcomes)


def _value(figures: Figures, part: str, task: str, measure: str) -> float | None:
    """A figure in hundredths, rounded as the tables show it; None where it was not measured."""
    for outcome in figures["outcomes"]:
        if (outcome["part"], outcome["task"]) == (part, task):
            value = outcome["metrics"].get(measure)
            return round(100 * value, 1) if isinstance(value, float) else None
    return None


def _columns() -> dict[str, str]:
    """Parts that have aims, and their titles."""
    named = dict.fromkeys(part for _, _, aims in AIMS for part in aims)
    return {part: TITLES.get(part, f"{part} test") for part in named}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    ruler = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruler, *rows)) + "\n"


def _aims(figures: Figures) -> str:
    columns, rows, missed, met = _columns(), [], 0, 0
    for task, measure, aims in AIMS:
        cells = []
        for part in columns:
            reached = _value(figures, part, task, measure)
            if part not in aims:
                cells.append("")
            elif reached is None:
                cells.append(f"not measured ({aims[part]})")
            else:
                missed, met = missed + (reached < aims[part]), met + (reached >= aims[part])
                cells.append(f"{reached:.1f} ({aims[part]}){' missed' if reached < aims[part] else ''}")
        rows.append((task, measure, *cells))
    return f"\n### What it was to reach\n\nReached, and in brackets the aim: {met} met, {missed} missed.\n\n" + _table(
        ("task", "measure", *columns.values()), rows
    )


def _scatter(runs: Sequence[Figures]) -> str:
    columns, rows = _columns(), []
    del columns[EASY_VQA]
    for task, measure, aims in AIMS:
        cells = []
        for part in columns:
            found = [value for run in runs if (value := _value(run, part, task, measure)) is not None]
            shown = f"{found[0]:.1f} ({min(found):.1f} to {max(found):.1f})" if len(found) == len(runs) else "–"
            cells.append(shown if part in aims else "")
        rows.append((task, measure, *cells))
    seeds = ", ".join(str(run["training"]["seed"]) if run["training"] else "unknown" for run in runs)
    return (
        f"\n### How far runs scatter\n\nThis checkpoint, and in brackets the least and the most of {len(runs)} runs, "
        f"seeds {seeds}; `{OTHER_SEEDS}` holds the figures of the others.\n\n"
        + _table(("task", "measure", *columns.values()), rows)
    )


def _training(figures: Figures, checkpoint: Path) -> str:
    training = figures["training"]
    plot = f"![Losses, and looks at 200 fixed scenes, against scenes seen]({PLOT})\n\n"
    shown = plot if (checkpoint / PLOT).exists() else ""
    if training is None:
        return f"\n{shown}"
    rows = [
        (f"`{leg['leg']}`", f"{leg['steps']:,}", f"{leg['scenes'] / 1000:,.0f}", f"{leg['hours']:.2f}")
        for leg in training["legs"]
    ]
    return (
        f"\n## How it was trained\n\nFrom nothing by one command, `make train-demo SEED={training['seed']}`: "
        f"{training['processes']} processes, {training['precision']}, PyTorch {training['torch']}, on "
        f"{training['cpu']}, in {sum(leg['hours'] for leg in training['legs']):.1f} hours.\n\n"
        + _table(("leg of `demo/train.py`", "steps", "thousand scenes", "hours"), rows, left=1)
        + f"\n{shown}"
    )


def _mistakes(figures: Figures) -> str:
    rows = [
        [each["task"], each["split"], wrong["asked"] or "–", wrong["truth"], wrong["answer"] or "(nothing)"]
        for task in dict.fromkeys(each["task"] for each in figures["outcomes"])
        for each in figures["outcomes"]
        if each["task"] == task and each["part"] in SHOWN_FROM
        for wrong in each["first_mistakes"]
    ]
    for row in rows:
        if row[2] == "text → image":
            row[2] = "a picture for the text"
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return _table(("task", "split", "asked", "truth", "answer"), cells, left=5)


def _styles(figures: Figures) -> str:
    if not figures["styles"]:
        return "the drawing styles in the repository that are not held out"
    named = [STYLES.get(style, style) for style in figures["styles"]]
    return " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    options = parser.parse_args()
    try:
        print(write_card(options.checkpoint))
    except (FiguresError, CheckpointError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
