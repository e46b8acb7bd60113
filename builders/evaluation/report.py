"""The table of an evaluation: printed, stored as JSON, and as Markdown for a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from builders.evaluation.tasks import Outcome

#: One row: task, metric, and a cell per split.
Row = tuple[str, ...]


def rows_of(outcomes: Sequence[Outcome]) -> tuple[Row, list[Row]]:
    """Head and rows. Values stand in hundredths, as papers have them; a cell is empty where a split has no such row."""
    splits = list(dict.fromkeys(outcome.split for outcome in outcomes))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for task in dict.fromkeys(outcome.task for outcome in outcomes):
        for outcome in (each for each in outcomes if each.task == task):
            cells.setdefault((task, "items"), {})[outcome.split] = f"{outcome.items:,}"
            for name, value in outcome.metrics.items():
                cells.setdefault((task, name), {})[outcome.split] = _shown(value)
    head = ("task", "measure", *splits)
    return head, [(*place, *(found.get(split, "") for split in splits)) for place, found in cells.items()]


def text_table(outcomes: Sequence[Outcome]) -> str:
    """The table for a terminal; why a figure was not computed stands below."""
    head, rows = rows_of(outcomes)
    rows, notes = _with_notes(rows)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Row) -> str:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), *map(line, rows), *notes])


def markdown_table(outcomes: Sequence[Outcome]) -> str:
    """The same as a Markdown table."""
    head, rows = rows_of(outcomes)
    rows, notes = _with_notes(rows)
    lines = [head, ("---", "---", *("---:" for _ in head[2:])), *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return text + "".join(f"\n\n{note}" for note in notes) + "\n"


def write_markdown(path: Path, outcomes: Sequence[Outcome], failures: int) -> None:
    """The table, and behind it the first failures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [markdown_table(outcomes), markdown_failures(outcomes, failures)]
    path.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def markdown_failures(outcomes: Sequence[Outcome], count: int) -> str:
    """The first mistakes of each task and split in the order of the data: nobody picked them."""
    parts = []
    for outcome in outcomes:
        if outcome.mistakes and count:
            parts.append(
                f"**{outcome.task}, {outcome.split}**: the first {min(count, len(outcome.mistakes))} of "
                f"{len(outcome.mistakes)} mistakes among {outcome.items:,}\n"
            )
            parts += [f"- {line}" for line in failures_of(outcome, count)]
            parts.append("")
    return "\n".join(parts)


def failures_of(outcome: Outcome, count: int) -> list[str]:
    """One line per mistake."""
    lines = []
    for mistake in outcome.mistakes[:count]:
        asked = f"{mistake.asked} " if mistake.asked else ""
        lines.append(f"`{mistake.key}` {asked}→ {mistake.answer or '(nothing)'}; right: {mistake.truth}")
    return lines


def write_json(path: Path, outcomes: Sequence[Outcome], about: dict[str, object], failures: int) -> None:
    """Everything: what was evaluated, every metric unrounded, and the first mistakes."""
    document = {
        **about,
        "outcomes": [
            {
                "task": outcome.task,
                "split": outcome.split,
                "items": outcome.items,
                "metrics": outcome.metrics,
                "mistakes": len(outcome.mistakes),
                "first_mistakes": [asdict(mistake) for mistake in outcome.mistakes[:failures]],
            }
            for outcome in outcomes
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_predictions(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Every answer, a file per task and split: for captions and answers the layouts of the official scorers."""
    folder.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        name = "-".join([outcome.task, *"".join(c if c.isalnum() else " " for c in outcome.split).lower().split()])
        text = json.dumps(outcome.predictions, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{100 * value:.1f}"


def _with_notes(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Reasons in place of numbers move below the table: they are too long for its cells."""
    changed, notes = [], {}
    for row in rows:
        reasons = [cell for cell in row[2:] if cell.startswith("not computed")]
        if reasons:
            notes[f"{row[1]}: {reasons[0]}"] = None
            row = (*row[:2], *("–" if cell.startswith("not computed") else cell for cell in row[2:]))
        changed.append(row)
    return changed, list(notes)
