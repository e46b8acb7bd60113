"""What the commands for pre-training and fine-tuning have in common: options, data, and the run itself."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from builders.data.readers.records import DatasetError
from builders.data.sources import SOURCES, Source, SourceOptions, open_source
from builders.train import run_state
from builders.train.batches import TaskBatches, TensorMaker, first_batches
from builders.train.best_weights import BestWeights
from builders.train.checkpoint_folder import write_checkpoint
from builders.train.distributed import process_group, rank, world_size
from builders.train.engine import Learner, Settings, Trainer, TrainingError
from mplug.checkpoint import CheckpointError, ConfigError
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug

#: Errors that a command reports in one line.
REPORTED = (CheckpointError, ConfigError, DatasetError, TrainingError, run_state.ResumeError, ValueError)


def add_options(parser: argparse.ArgumentParser, *, learning_rate: float, vision_learning_rate: float) -> None:
    """Options of data, of training and of the machine; `Settings` says what the latter mean."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, choices=SOURCES, help="emoji: scenes drawn afresh")
    data.add_argument("--annotations", type=Path, help="file or folder, in the published layout of the data set")
    data.add_argument("--images", type=Path, help="folder of its images")
    data.add_argument("--split", default="train", help="what to train on (train)")
    data.add_argument("--validation-split", help="what to look at during training, of the same files")
    data.add_argument("--validation-batches", type=int, default=8)
    data.add_argument(
        "--keep-best",
        metavar="METRIC",
        help="end with the weights that had the highest METRIC on the validation split, such as 'answers right'",
    )
    data.add_argument(
        "--crop",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="crop pictures at random to at least this share of their area (1.0: never)",
    )
    data.add_argument("--texts", type=int, default=2, help="texts about each emoji scene, where a task has several")
    data.add_argument(
        "--max-unreadable",
        type=float,
        default=Settings.max_unreadable,
        metavar="SHARE",
        help="stop when more of the data set's pictures cannot be read (default: %(default)s; one always may)",
    )

    training = parser.add_argument_group("training")
    training.add_argument("--output", type=Path, required=True, help="of the run; the result is OUTPUT/checkpoint")
    training.add_argument("--steps", type=int, required=True)
    training.add_argument("--batch-size", type=int, default=32, help="images of a batch, per process")
    training.add_argument("--accumulate", type=int, default=1, help="batches of a step")
    training.add_argument("--learning-rate", type=float, default=learning_rate)
    training.add_argument("--vision-learning-rate", type=float, default=vision_learning_rate)
    training.add_argument("--warmup", type=int, default=1000, help="steps")
    training.add_argument("--weight-decay", type=float, default=0.02)
    training.add_argument("--beta2", type=float, default=Settings.beta2, help="of AdamW (%(default)s, as published)")
    training.add_argument(
        "--muon",
        type=float,
        default=Settings.muon,
        metavar="FACTOR",
        help="step matrices of transformer layers by Muon, at so many times the rates; helps from nothing (0: no)",
    )
    training.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient (0: none)")
    training.add_argument("--image-size", type=int, help="pixels; the positions are resampled")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="STATE",
        help="go on from the newest state in OUTPUT, or from a file",
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    machine.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    machine.add_argument("--checkpointing", action="store_true", help="less memory, a third more time")
    machine.add_argument("--workers", type=int, default=1, help="that make batches (0: none; emoji scenes want 1)")
    machine.add_argument("--log-every", type=int, default=50, help="steps")
    machine.add_argument("--validate-every", type=int, default=500, help="steps (0: at the end)")
    machine.add_argument("--save-every", type=int, default=500, help="steps (0: at the end)")


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings among the options."""
    return Settings(
        **{field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)}
    )


def source_of(task: str, options: argparse.Namespace) -> Source:
    """Open the source of data that the options name. Raises DatasetError for one that does not suit the task."""
    about = SourceOptions(annotations=options.annotations, images=options.images, texts=options.texts)
    return open_source(options.data, about, task)


def train(
    task: str,
    options: argparse.Namespace,
    network: MPlug,
    vocabulary: Path,
    learner_of: Callable[[MPlug, Tokenizer], Learner],
    device: torch.device,
) -> None:
    """Run it, and leave the checkpoint in OUTPUT/checkpoint."""
    settings = settings_of(options)
    resume = run_state.find(options.output, options.resume) if options.resume else None
    tokenizer = Tokenizer(vocabulary, network.config.text.vocab_size)
    source = source_of(task, options)
    training = source.stream(
        task, options.split, options.batch_size, seed=options.seed, rank=rank(), world=world_size()
    )
    validation = source.validation_stream(task, options.validation_split, options.batch_size)
    maker = TensorMaker(tokenizer, network.config, options.crop)
    looked_at = []
    if validation is not None:
        exact = TensorMaker(tokenizer, network.config)
        count = min(options.validation_batches, getattr(validation, "batches", options.validation_batches))
        looked_at = first_batches(task, validation, exact, count, rank=rank(), world=world_size())
    best = None
    if options.keep_best:
        if not looked_at:
            raise ValueError(f"--keep-best {options.keep_best!r} needs a --validation-split to choose by")
        steps = run_state.step_of(resume) if resume else 0
        best = BestWeights(network, options.output, options.keep_best, resumed_at=steps)
    trainer = Trainer(
        learner_of(network, tokenizer),
        TaskBatches(task, training, maker),
        settings,
        options.output,
        device=device,
        validation=looked_at,
        resume=resume,
        after_validation=best.offer if best else None,
    )
    trainer.run()
    if rank() == 0:
        if best:
            best.restore()
            print(f"kept: step {best.step:,}, {best.metric} {100 * best.value:.2f} %", flush=True)
        folder = options.output / "checkpoint"
        write_checkpoint(network.cpu().eval(), vocabulary, folder)
        print(f"{folder}: the checkpoint; {options.output}: log.jsonl, training.png, tensorboard", flush=True)


def command(body: Callable[[argparse.Namespace, torch.device], None], options: argparse.Namespace) -> int:
    """Run a command in its process group; report what goes wrong in one line. Returns the exit status."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    try:
        if options.output.exists() and not options.output.is_dir():
            raise ValueError(f"--output {options.output} is a file; name a folder for the run")
        with process_group(options.device) as device:
            body(options, device)
    except REPORTED as error:
        # A worker's error comes with its whole traceback; the last line is the error itself.
        print(f"error: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0
