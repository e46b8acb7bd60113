"""Reproduce a result of the paper: check the files, fine-tune where asked, evaluate, print our figure beside theirs.

    python builders/reproduce.py caption --data coco --checkpoint mplug_image-captioning_coco_large_en
    python builders/reproduce.py nlvr2 --data nlvr2 --checkpoint mplug_large --finetune --output build/nlvr2
    python builders/reproduce.py vatex --data vatex --url localhost:8001     # asks a running server

Every file that is missing, cannot be read or holds another number of items than the published split is named before
anything is computed. Which files DATA must hold: docs/reproduce.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders import reproduction_check
from builders.evaluate import MODELS as PUBLIC_MODELS
from builders.evaluate import REPORTED, SCORERS, TIMEOUT
from builders.evaluation import report
from builders.evaluation.models import Model, open_checkpoint
from builders.evaluation.tasks import Outcome
from builders.reproduction_check import Checked, Ready
from builders.reproductions import MODELS, PAPER, REPRODUCTIONS, Reproduction, Training
from clients.client import AsyncClient
from mplug.checkpoint import CheckpointError, find_checkpoint
from mplug.config import ConfigError, read_config

FINETUNE = Path(__file__).parent / "train" / "finetune.py"
#: Problems shown on the terminal; all of them stand in a file.
SHOWN = 40
PROBLEMS = "problems.txt"
#: CIDEr optimisation after cross-entropy (configs/caption_mplug_large_scst.yaml): epochs, batch, learning rate.
CIDER_EPOCHS, CIDER_BATCH, CIDER_RATE = 5, 128, 1e-6


class ReproductionError(RuntimeError):
    """The result cannot be reproduced; the message says why."""


@dataclass(frozen=True)
class Row:
    """A figure: the split, the measure, ours, and the published ones by model; all in hundredths."""

    split: str
    items: int
    measure: str
    ours: float | None
    published: dict[str, float | None]
    note: str


def check(options: argparse.Namespace, row: Reproduction) -> Ready:
    """Check data and checkpoint. Raises ReproductionError after having named everything that is wrong."""
    ready, problems = reproduction_check.check(row, options.data, training=bool(options.finetune))
    if options.checkpoint is not None:
        try:
            files = find_checkpoint(options.checkpoint)
            read_config(files.config, files.bert_config, task=row.checkpoint_task)
        except (CheckpointError, ConfigError) as error:
            problems.append(str(error))
    if options.any_size:
        for problem in ready.sizes:
            print(f"note: {problem}", file=sys.stderr)
    else:
        problems = [*ready.sizes, *problems]
    if not problems:
        return ready
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / PROBLEMS
    path.write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")
    shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
    rest = f"\n  and {len(problems) - SHOWN:,} more, all in {path}" if len(problems) > SHOWN else ""
    sizes = "; --any-size goes on with splits of other sizes" if ready.sizes and not options.any_size else ""
    raise ReproductionError(f"{len(problems):,} problems with {options.data}:\n{shown}{rest}\nnothing was run{sizes}")


def finetune(options: argparse.Namespace, row: Reproduction, training: Checked, how: Training) -> Path:
    """Fine-tune as published; return the checkpoint. Raises ReproductionError."""
    steps = options.steps or max(1, how.epochs * how.texts * len(training.records) // how.batch)
    result = _finetune(options, row, training, how.task, "finetuned", options.checkpoint, (
        *_schedule(steps, how.batch, options.batch_size),
        *("--learning-rate", str(how.learning_rate), "--vision-learning-rate", str(how.vision_learning_rate)),
        *("--image-size", str(options.image_size or how.image_size), "--crop", "0.5"),
    ))  # fmt: skip
    if options.finetune == "cider":
        steps = options.steps or max(1, CIDER_EPOCHS * how.texts * len(training.records) // CIDER_BATCH)
        rates = ("--learning-rate", str(CIDER_RATE), "--vision-learning-rate", str(CIDER_RATE))
        schedule = _schedule(steps, CIDER_BATCH, options.batch_size)
        result = _finetune(options, row, training, how.task, "cider", result, ("--cider", *schedule, *rates))
    return result


def _schedule(steps: int, batch: int, per_process: int) -> tuple[str, ...]:
    accumulate = max(1, batch // per_process)
    return ("--steps", str(steps), "--batch-size", str(min(batch, per_process)), "--accumulate", str(accumulate),
            "--warmup", str(min(1000, steps // 10)))  # fmt: skip


def _finetune(
    options: argparse.Namespace,
    row: Reproduction,
    training: Checked,
    task: str,
    name: str,
    init: Path,
    arguments: tuple,
) -> Path:
    output = options.output / name
    command = [
        *(options.launcher.split() or [sys.executable]), str(FINETUNE), task, "--init", str(init), "--data", row.data,
        "--annotations", str(training.annotations), "--images", str(training.images), "--split", training.split,
        "--output", str(output), *arguments, *options.finetune_arguments.split(),
    ]  # fmt: skip
    print(" ".join(command), file=sys.stderr)
    if subprocess.run(command, check=False).returncode:
        raise ReproductionError(f"fine-tuning failed; its messages stand above, its states in {output}")
    return output / "checkpoint"


async def evaluate(
    options: argparse.Namespace, row: Reproduction, ready: Ready, checkpoint: Path | None
) -> list[Outcome]:
    """Evaluate every split that is there. Raises ReproductionError, or what the model raises."""
    if checkpoint is None:
        async with AsyncClient(options.url, timeout=TIMEOUT) as client:
            return await _evaluate(client, row, ready)
    async with open_checkpoint(checkpoint, row.checkpoint_task) as model:
        return await _evaluate(model, row, ready)


async def _evaluate(model: Model, row: Reproduction, ready: Ready) -> list[Outcome]:
    for name in PUBLIC_MODELS[row.task]:
        if not await model.is_ready(name):
            raise ReproductionError(f"the model {name} is not served; is the server up, and of such a checkpoint?")
    outcomes = []
    for checked in ready.splits:
        keywords = {**row.settings, **({"candidates": checked.answers} if checked.answers else {})}
        outcomes.append(await partial(SCORERS[row.task], **keywords)(model, checked.records, checked.what.title))
    return outcomes


def rows_of(ready: Ready, outcomes: Sequence[Outcome]) -> list[Row]:
    """Our figures beside the published ones, a row per split and measure."""
    rows = []
    for checked, outcome in zip(ready.splits, outcomes, strict=True):
        for measure, figures in checked.what.figures.items():
            value = outcome.metrics.get(measure)
            ours = 100 * value if isinstance(value, float) else None
            note = "; ".join(filter(None, (checked.what.note, value if isinstance(value, str) else "")))
            published = dict(zip(MODELS, figures, strict=True))
            rows.append(Row(checked.what.title, outcome.items, measure, ours, published, note))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, which a terminal shows well enough."""
    head = ("split", "items", "measure", "ours", *(f"mPLUG {model}" for model in MODELS))
    lines = [head, ("---", "---:", "---", *["---:"] * (1 + len(MODELS)))]
    for row in rows:
        figures = [row.ours, *row.published.values()]
        shown = ["–" if value is None else f"{value:.1f}" if value is row.ours else f"{value:g}" for value in figures]
        lines.append((row.split, f"{row.items:,}", row.measure, *shown))
    notes = dict.fromkeys(f"{row.split}: {row.note}" for row in rows if row.note)
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([text, "", f"Published: {PAPER}.", *notes])


def write(options: argparse.Namespace, rows: Sequence[Row], outcomes: Sequence[Outcome], weights: str | None) -> None:
    """Write table, figures and every answer into the output folder."""
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "reproduction.md").write_text(table(rows) + "\n", encoding="utf-8")
    document = {
        "task": options.task,
        "evaluated": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights_sha256": weights,
        "finetuned": options.finetune or None,
        "rows": [vars(row) for row in rows],
        "metrics": {outcome.split: outcome.metrics for outcome in outcomes},
    }
    path = options.output / "reproduction.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report.write_predictions(options.output / "predictions", outcomes)


def run(options: argparse.Namespace) -> None:
    """Check, fine-tune, evaluate, report. Raises what the command line reports in one line."""
    row = REPRODUCTIONS[options.task]
    if options.finetune and not row.trainings:
        raise ReproductionError(f"{options.task} is zero-shot in the paper: there is no fine-tuning to repeat")
    if options.finetune == "cider" and options.task != "caption":
        raise ReproductionError("--finetune cider belongs to the task caption")
    if options.finetune and options.checkpoint is None:
        raise ReproductionError("--finetune starts from a --checkpoint")
    ready = check(options, row)
    print(ready.summary(), file=sys.stderr)
    if options.check_only:
        return
    checkpoint = options.checkpoint
    if ready.training and ready.how:
        checkpoint = finetune(options, row, ready.training, ready.how)
    outcomes = asyncio.run(evaluate(options, row, ready, checkpoint))
    rows = rows_of(ready, outcomes)
    write(options, rows, outcomes, find_checkpoint(checkpoint).sha256() if checkpoint else None)
    print(table(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=REPRODUCTIONS)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the data set, as docs/reproduce.md says"
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, metavar="DIR", help="through PyTorch, in this process")
    model.add_argument("--url", metavar="HOST:PORT", help="a running server's gRPC address")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: build/reproduce/TASK")
    parser.add_argument("--any-size", action="store_true", help="go on where a split has another size than published")
    parser.add_argument("--check-only", action="store_true", help="stop after the check of the files")
    training = parser.add_argument_group("fine-tuning")
    training.add_argument(
        "--finetune", nargs="?", const="yes", choices=("yes", "cider"), help="first; caption: cider, too"
    )
    training.add_argument("--launcher", default="", metavar="TEXT", help='such as "torchrun --nproc-per-node 8"')
    training.add_argument("--batch-size", type=int, default=8, metavar="N", help="at once (8); the rest is accumulated")
    training.add_argument("--image-size", type=int, metavar="N", help="pixels (default: as published for mPLUG large)")
    training.add_argument("--steps", type=int, metavar="N", help="in place of the published epochs")
    training.add_argument(
        "--finetune-arguments", default="", metavar="TEXT", help="more of builders/train/finetune.py's"
    )
    options = parser.parse_args(arguments)
    options.output = options.output or Path("build") / "reproduce" / options.task
    try:
        run(options)
    except (ReproductionError, *REPORTED) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the network'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # as shells report it
