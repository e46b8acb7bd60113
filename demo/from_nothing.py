"""The demo checkpoint from nothing: the whole curriculum, every figure, and the card. `make train-demo` runs this.

    python demo/from_nothing.py --output build/train-demo --seed 0

It trains in two processes, on any machine, so that steps and batches mean the same; each has half of the cores. Stopped
by Ctrl-C, a full disk or a power cut, the same command goes on from the newest state, and the weights are, on the same
machine, bit for bit those of a run that was never stopped. What is finished is not done again. In the end
OUTPUT/checkpoint holds the checkpoint with its curves, figures.json and README.md, its card.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from uuid import uuid4

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from builders.evaluate import REPORTED
from builders.train import run_state
from builders.train.run_log import PLOT
from builders.train.run_state import ResumeError
from demo.card import write_card
from demo.figures import FiguresError, measure
from demo.train import DEFAULT_LEGS, leg_folders, name_legs, parse_legs
from demo.training.run_record import RunRecord, cpu_model

PROCESSES = 2
TRAIN = Path(__file__).with_name("train.py")
SECONDS_TO_END = 10  # that a process has after Ctrl-C, before it is killed; a state is whole or not there


class TrainingFailed(RuntimeError):
    """A training process ended early; it has said why."""


def check_run(output: Path, legs: Sequence[tuple[str, int]], seed: int) -> RunRecord | None:
    """Return the record of the run in OUTPUT. Raises ResumeError where it is another than the one asked for."""
    earlier = RunRecord.read(output)
    if earlier is not None:
        wanted = RunRecord(
            seed, name_legs(legs), None, earlier.precision, PROCESSES, cpu=cpu_model(), torch=torch.__version__
        )
        earlier.check(wanted, output)
    elif any(run_state.newest(folder) for folder in leg_folders(legs, output)):
        raise ResumeError(f"{output}: holds states, but no record of the run they are of; name another folder")
    return earlier


def train_legs(output: Path, legs: Sequence[tuple[str, int]], seed: int, options: Sequence[str]) -> None:
    """Run demo/train.py as torchrun would, continuing what is there. Raises TrainingFailed, SignalException."""
    resume = run_state.newest(leg_folders(legs, output)[0]) is not None
    command = [str(TRAIN), "--output", str(output), "--legs", name_legs(legs), "--seed", str(seed), *options]
    if resume:
        command.append("--resume")
        print(f"{output}: {progress(output, legs)}; going on from there", flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // PROCESSES)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # process 0 tells what went wrong
    logs = output / "processes"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=PROCESSES,
        run_id=str(uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=SECONDS_TO_END,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=dict.fromkeys(range(1, PROCESSES), Std.ALL)),
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        where = f"; what it wrote lies in {logs}" if number else ""
        raise TrainingFailed(
            f"process {number} of the training ended with exit code {failure.exitcode}{where}; "
            f"{progress(output, legs)}; the same command goes on from there"
        ) from None
    shutil.rmtree(logs, ignore_errors=True)


def progress(output: Path, legs: Sequence[tuple[str, int]]) -> str:
    """Return how far a run has come, as its states tell."""
    reached = "nothing is kept yet"
    for number, (folder, (name, steps)) in enumerate(zip(leg_folders(legs, output), legs, strict=True), start=1):
        state = run_state.newest(folder)
        if state is not None:
            reached = f"step {run_state.step_of(state):,} of {steps:,} of leg {number} of {len(legs)}, {name}, is kept"
    return reached


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/train-demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--legs",
        type=parse_legs,
        default=parse_legs(DEFAULT_LEGS),
        help=f"NAME:STEPS,…, for a rehearsal (default: {DEFAULT_LEGS})",
    )
    parser.add_argument("--items", type=int, help="evaluated per task and split, for a rehearsal (default: all)")
    parser.add_argument("--without-figures", action="store_true", help="end with the checkpoint")
    parser.add_argument("--save-every", type=int, help="steps between states (default: that of demo/train.py)")
    return parser.parse_args(arguments)


def make(options: argparse.Namespace) -> None:
    """Train, evaluate and write the card; whatever of it is there already stays."""
    output, legs, checkpoint = options.output, options.legs, options.output / "checkpoint"
    if output.exists() and not output.is_dir():
        raise ResumeError(f"--output {output} is a file; name a folder for the run")
    check_run(output, legs, options.seed)
    if not (checkpoint / "model.safetensors").exists():
        every = () if options.save_every is None else ("--save-every", str(options.save_every))
        train_legs(output, legs, options.seed, every)
    if options.without_figures:
        return
    shutil.copyfile(output / PLOT, checkpoint / PLOT)
    measure(checkpoint, output / "figures", run=output, items=options.items)
    write_card(checkpoint)
    print(f"{checkpoint}: the checkpoint, its card (README.md), figures.json and {PLOT}", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        make(options)
    except (KeyboardInterrupt, SignalException):
        print(f"\nstopped; {progress(options.output, options.legs)}: the same command goes on", file=sys.stderr)
        return 130
    except (TrainingFailed, ResumeError, FiguresError, *REPORTED) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
