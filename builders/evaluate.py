"""Evaluate a model on every task, through a running server or through PyTorch, and print one table.

    python -m mplug.server build/demo --run builders/evaluate.py --url {grpc}      # emoji scenes, all tasks
    python builders/evaluate.py --checkpoint checkpoints/demo --task caption vqa   # without a server
    python builders/evaluate.py --data coco --split test --annotations dataset_coco.json --images coco
    python builders/evaluate.py --data vqa --predictions answers.json --annotations v2_mscoco_val2014_annotations.json

What each figure means stands in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders.build import BuildError
from builders.compile.compare import ArtefactError
from builders.data.readers.records import DatasetError, check_keys
from builders.data.sources import SOURCES, Source, SourceOptions, open_source, tasks_of
from builders.evaluation import caption_metrics, report, tasks
from builders.evaluation.models import Model, open_checkpoint
from builders.evaluation.predictions import SCORED, score_file
from builders.evaluation.tasks import Outcome
from builders.plan import PlanError
from clients.client import AsyncClient, ClientError
from mplug.checkpoint import CheckpointError, find_checkpoint
from mplug.config import TASKS, ConfigError

#: Public models that a task asks, and how it is scored.
MODELS = {
    "caption": ("caption",),
    "vqa": ("vqa",),
    "retrieval": ("embed_image", "embed_text", "match"),
    "grounding": ("ground",),
    "nlvr": ("nlvr",),
    "entail": ("entail",),
    "video": ("vqa",),
}
SCORERS = {
    "caption": tasks.captions,
    "vqa": tasks.questions,
    "retrieval": tasks.retrieval,
    "grounding": tasks.expressions,
    "nlvr": tasks.pairs,
    "entail": tasks.hypotheses,
    "video": tasks.video_questions,
}
DEFAULT_URL = "localhost:8001"
TIMEOUT = 600.0  # seconds that one answer may take: nobody waits for it, and the machine may be busy
#: What data, checkpoints and servers raise, and a command that evaluates reports in one line.
REPORTED = (DatasetError, ClientError, BuildError, PlanError, CheckpointError, ConfigError, ArtefactError)


class UsageError(ValueError):
    """Options that do not go together, or ask for what the model has not."""


@dataclass(frozen=True)
class Job:
    """A task on a split. `records` draws or reads them when their turn comes."""

    task: str
    split: str
    records: Callable[[], Sequence[Any]]
    score: Callable[..., Awaitable[Outcome]]

    async def run(self, model: Model) -> Outcome:
        records = self.records()
        if not records:
            raise UsageError(f"{self.task}, {self.split}: there is nothing to ask among so few items")
        check_keys(records, f"{self.task}, {self.split}")
        return await self.score(model, records, self.split)


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """What the options ask for, in the order of the table. Raises UsageError and DatasetError."""
    possible = tasks_of(options.data)
    wrong = set(options.task or ()) - set(possible)
    if wrong:
        raise UsageError(f"--data {options.data} is for {', '.join(possible)}, not for {', '.join(sorted(wrong))}")
    source = open_source(options.data, SourceOptions(options.annotations, options.images, options.questions))
    limit = options.items or source.default_items
    jobs = []
    for task in options.task or possible:
        scored = partial(SCORERS[task], **_keywords(task, source, options))
        for split, title in source.splits(options.split).items():
            records = partial(source.records, task, split, limit)
            if source.default_items is None:
                records()  # files: an error in them comes before the first request
            jobs.append(Job(task, title, records, scored))
    return jobs


def _keywords(task: str, source: Source, options: argparse.Namespace) -> dict[str, Any]:
    """What a task's scorer takes besides the records."""
    if task == "caption":
        return {"figures": source.caption_figures}
    if task == "retrieval":
        return {"reranked": options.rerank, "merge_texts": source.shares_texts}
    if task in ("vqa", "video") and options.rank:
        return {"candidates": source.answers()}
    return {}


async def evaluate(model: Model, jobs: Sequence[Job], *, skip: bool) -> list[Outcome]:
    """Run the jobs one after the other. `skip` those that the model does not serve; else raises UsageError."""
    if not await model.is_ready():
        raise UsageError("the server does not answer, or is not ready; start one: python -m mplug.server REPOSITORY")
    served = {name: await model.is_ready(name) for name in {name for names in MODELS.values() for name in names}}
    outcomes, left_out = [], {}
    for job in jobs:
        missing = [name for name in MODELS[job.task] if not served[name]]
        if missing:
            left_out[job.task] = missing[0]
            continue
        began = time.monotonic()
        outcomes.append(await job.run(model))
        print(
            f"{job.task}, {job.split}: {outcomes[-1].items:,} items in {time.monotonic() - began:.0f} s",
            file=sys.stderr,
        )
    reasons = "; ".join(f"{task}: the model {name} is not served" for task, name in left_out.items())
    if left_out and not (skip and outcomes):
        raise UsageError(reasons)
    if left_out:
        print(f"left out: {reasons}", file=sys.stderr)
    return outcomes


@contextlib.asynccontextmanager
async def _model(options: argparse.Namespace) -> AsyncIterator[Model]:
    if options.checkpoint is not None:
        async with open_checkpoint(options.checkpoint, options.checkpoint_task) as model:
            yield model
    else:
        async with AsyncClient(options.url, options.protocol, timeout=TIMEOUT, checkpoint=options.served_as) as client:
            yield client


async def _run(options: argparse.Namespace) -> list[Outcome]:
    jobs = jobs_of(options)
    async with _model(options) as model:
        return await evaluate(model, jobs, skip=options.task is None)


def _about(options: argparse.Namespace) -> dict[str, object]:
    """What was evaluated, for the JSON file."""
    if options.predictions:
        source: dict[str, object] = {"predictions": options.predictions.name}
    elif options.checkpoint:
        weights = find_checkpoint(options.checkpoint)
        source = {"checkpoint": options.checkpoint.name, "weights_sha256": weights.sha256(), "through": "PyTorch, fp32"}
    else:
        source = {"through": f"a server over {options.protocol}"}
    return {**source, "data": options.data, "evaluated": datetime.now(UTC).isoformat(timespec="seconds")}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("what is evaluated").add_mutually_exclusive_group()
    model.add_argument("--url", help=f"a server, HOST:PORT (default: {DEFAULT_URL})")
    model.add_argument("--checkpoint", type=Path, metavar="DIR", help="a checkpoint's folder, through PyTorch")
    model.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help=f"answers in the layout of the official servers ({', '.join(SCORED)}); asks no model",
    )
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc", help="of --url")
    parser.add_argument(
        "--served-as", metavar="NAME", default="", help="the checkpoint's name, where the server at --url has several"
    )
    parser.add_argument(
        "--checkpoint-task",
        choices=TASKS,
        metavar="TASK",
        help="what the checkpoint was fine-tuned for, where its YAML does not say",
    )
    data = parser.add_argument_group("on what")
    data.add_argument("--data", choices=SOURCES, default="emoji", help="default: %(default)s")
    data.add_argument("--task", nargs="+", choices=SCORERS, help="default: all that data and model have")
    data.add_argument(
        "--split",
        help="train, val or test of a data set that has them in one file; of emoji: "
        "those of docs/data.md (default: test, test-twemoji, test-pairs)",
    )
    data.add_argument(
        "--items",
        type=_positive,
        metavar="N",
        help="at most so many per task and split (default: all; of emoji 1,000)",
    )
    data.add_argument("--annotations", type=Path, metavar="FILE", help="of a real data set")
    data.add_argument("--questions", type=Path, metavar="FILE", help="of VQA in the official layout")
    data.add_argument("--images", type=Path, metavar="DIR", help="where a real data set's pictures or videos are")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--subset", action="store_true", help="--predictions: leave out references that nothing was predicted for"
    )
    how.add_argument(
        "--rerank",
        type=_positive,
        default=tasks.RERANKED,
        metavar="K",
        help="of a retrieval's shortlist that the matching head ranks (default: %(default)s)",
    )
    how.add_argument(
        "--rank", action="store_true", help="easy-vqa, video-qa: rank their answers instead of writing one"
    )
    how.add_argument("--fetch-spice-models", action="store_true", help="download what SPICE needs first (400 MB)")
    result = parser.add_argument_group("results")
    result.add_argument("--output", type=Path, metavar="FILE", help="write scores and first mistakes as JSON")
    result.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, and the failures, as Markdown")
    result.add_argument(
        "--failures",
        type=int,
        default=0,
        metavar="N",
        help="show the first N mistakes of each task and split, nobody having picked them",
    )
    result.add_argument("--save-predictions", type=Path, metavar="DIR", help="write every answer, a file per task")
    options = parser.parse_args(arguments)
    if options.predictions is not None and options.annotations is None:
        parser.error("--predictions needs --annotations, the references")
    options.url = options.url or DEFAULT_URL
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parse(arguments)
    try:
        if options.fetch_spice_models:
            caption_metrics.fetch_spice_models()
        if options.predictions is not None:
            outcomes = [
                score_file(options.data, options.predictions, options.annotations, options.split, subset=options.subset)
            ]
        else:
            outcomes = asyncio.run(_run(options))
        print(report.text_table(outcomes))
        for outcome in outcomes if options.failures else ():
            wrong = f"{len(outcome.mistakes):,} of {outcome.items:,}"
            print(f"\n{outcome.task}, {outcome.split}: {wrong} wrong, the first:")
            print("\n".join(report.failures_of(outcome, options.failures)))
        if options.output:
            report.write_json(options.output, outcomes, _about(options), options.failures)
        if options.markdown:
            report.write_markdown(options.markdown, outcomes, options.failures)
        if options.save_predictions:
            report.write_predictions(options.save_predictions, outcomes)
    except (UsageError, *REPORTED) as error:
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
