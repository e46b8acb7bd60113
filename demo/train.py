"""Train the demo checkpoint on emoji scenes: all pre-training objectives, then every task at once.

    python demo/train.py --output build/train
    torchrun --nproc-per-node 2 demo/train.py --output build/train    # twice the batch on two cores
    python demo/train.py --legs tasks:200,whole:300 --init checkpoints/demo --output build/more

A leg is NAME:STEPS; each continues from the weights before it, the first from `--init` or from nothing.
First the vision encoder learns to name what each patch shows, which drawn scenes come with; then the objectives of
pre-training join (arXiv 2205.12005, section 3.3), with words that learn to attend to what they name; then captions,
questions, boxes, pairs and judgements all at once. A leg is a run of the general trainer in OUTPUT/NUMBER-NAME, with
its log, plot and states; `--resume` continues bit for bit where a run was stopped. builders/build.py takes the result,
OUTPUT/checkpoint. `make train-demo` runs this in two processes, and what comes after it (demo/from_nothing.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from builders.train import run_state
from builders.train.checkpoint_folder import write_checkpoint
from builders.train.distributed import rank, world_size
from builders.train.engine import Settings, Trainer
from builders.train.plot import draw, read_logs
from builders.train.run_log import LOG, PLOT
from builders.train.training_command import command
from demo.texts.vocabulary import build_vocabulary, write_vocabulary
from demo.training.batches import SCENE_SIZE, DemoBatches
from demo.training.config import demo_config
from demo.training.learner import DemoLearner
from demo.training.legs import LEGS, Leg
from demo.training.run_record import RunRecord, cpu_model, hold
from mplug.checkpoint import CheckpointError, load_weights, read_state_dict
from mplug.network import MPlug
from mplug.runtime.openvino import best_precision, supported

WARM_UP = 100  # steps
WEIGHT_DECAY = 0.05
MUON = 2.5  # times the legs' rates
DEFAULT_LEGS = "sprites:8000,patches:5000,pretrain:600,tasks:1600,whole:1100"


def parse_legs(text: str) -> list[tuple[str, int]]:
    """Parse NAME:STEPS,… Raises ArgumentTypeError naming the leg that is wrong."""
    legs = []
    for part in text.split(","):
        name, _, steps = part.partition(":")
        if name not in LEGS or not steps.isdecimal() or int(steps) < 1:
            raise argparse.ArgumentTypeError(f"{part!r} is not NAME:STEPS, with a name of {', '.join(LEGS)}")
        legs.append((name, int(steps)))
    return legs


def name_legs(legs: Sequence[tuple[str, int]]) -> str:
    """Return legs as `parse_legs` reads them."""
    return ",".join(f"{name}:{steps}" for name, steps in legs)


def leg_folders(legs: Sequence[tuple[str, int]], output: Path) -> list[Path]:
    """Return where each leg's run lies."""
    return [output / f"{number}-{name}" for number, (name, _) in enumerate(legs, start=1)]


def precision_for(asked: str, earlier: RunRecord | None) -> str:
    """Return what to train in, and say why; a run that is continued keeps its own."""
    chosen = asked
    if asked == "auto":
        chosen = earlier.precision if earlier else best_precision()
    able = supported(chosen)
    if chosen == "bf16" and not able:
        reason = "which this CPU emulates, many times slower: a run keeps the precision that it began in"
    elif asked == "auto" and not earlier:
        reason = "which this CPU computes in" if chosen == "bf16" else "since this CPU has no bf16 instructions"
    else:
        reason = "as the run began" if asked == "auto" else "as asked for"
    if rank() == 0:
        print(f"precision {chosen}, {reason}", flush=True)
    return chosen


def settings_of(leg: Leg, steps: int, seed: int, **changes: object) -> Settings:
    """Return the settings of one leg."""
    values: dict[str, object] = {
        "steps": steps,
        "batch_size": leg.batch_size,
        "learning_rate": leg.learning_rate,
        "vision_learning_rate": leg.vision_learning_rate,
        "warmup": WARM_UP,
        "weight_decay": WEIGHT_DECAY,
        "beta2": 0.98,  # follows gradients that change as a task gives way to another
        "muon": MUON,
        "clip_groups": True,  # so that a new task's first gradients do not suppress the vision encoder's
        "seed": seed,
    }
    return Settings(**(values | changes))


def start_from(learner: DemoLearner, init: Path) -> None:
    """Take the weights that a checkpoint (a folder or its .safetensors) has; the others stay as initialised."""
    weights = init / "model.safetensors" if init.is_dir() else init
    if not weights.is_file():
        raise CheckpointError(f"--init {init}: holds no model.safetensors")
    stored, own = read_state_dict(weights), learner.network.state_dict()
    taken = {name: tensor for name, tensor in stored.items() if name in own and own[name].shape == tensor.shape}
    fresh = sorted({name.split(".")[0] for name in own.keys() - taken.keys()})
    if rank() == 0:
        print(f"{weights}: {len(taken)} tensors taken; started from nothing: {', '.join(fresh) or 'none'}", flush=True)
    load_weights(learner.network, own | taken, source=weights)
    learner.contrast.copy_weights(learner.network)


def train(
    legs: Sequence[tuple[str, int]],
    learner: DemoLearner,
    output: Path,
    *,
    device: torch.device,
    seed: int = 0,
    resume: bool = False,
    until: int | None = None,
    **changes: object,
) -> None:
    """Run the legs one after the other.

    `resume`: continue from the newest state of each leg's folder; finished legs are loaded and not run again.
    `until`: stop the first unfinished leg at that step. `changes`: of every leg's settings.
    """
    folders = leg_folders(legs, output)
    if resume:
        run_state.find(folders[0], "latest")  # or say that there is nothing to resume
    elif rank() == 0:
        for folder in folders:
            run_state.discard(folder)  # of an earlier run, which a later --resume would take for this one's
    for number, (folder, (name, steps)) in enumerate(zip(folders, legs, strict=True)):
        learner.leg = LEGS[name]
        trainer = Trainer(
            learner,
            DemoBatches(learner.leg, seed=seed + number, rank=rank()),
            settings_of(learner.leg, steps, seed + number, **changes),
            folder,
            device=device,
            resume=run_state.newest(folder) if resume else None,
            leg=name,
        )
        trainer.run(until)
        if trainer.step < steps:
            return
    if rank() == 0:
        draw(read_logs([folder / LOG for folder in folders]), output / PLOT)
        vocabulary = output / "vocab.txt"
        write_vocabulary(vocabulary)
        write_checkpoint(learner.network.cpu().eval(), vocabulary, output / "checkpoint")


def body(options: argparse.Namespace, device: torch.device) -> None:
    """Build the network and train it. Raises ResumeError where OUTPUT holds another run than is to be continued."""
    wanted = RunRecord(
        seed=options.seed,
        legs=name_legs(options.legs),
        init=None if options.init is None else str(options.init),
        precision=options.precision,
        processes=world_size(),
        cpu=cpu_model(),
        torch=torch.__version__,
    )
    with hold(options.output):
        earlier = RunRecord.read(options.output) if options.resume else None
        if earlier is not None:
            earlier.check(wanted, options.output)
        wanted = replace(wanted, precision=precision_for(options.precision, earlier))
        network = MPlug(demo_config(SCENE_SIZE, len(build_vocabulary())))
        network.initialise(options.seed, by_width=True)
        torch.manual_seed(options.seed)  # of the heads
        learner = DemoLearner(network, LEGS[options.legs[0][0]])
        if options.init is not None:
            start_from(learner, options.init)
        if rank() == 0 and not options.resume:
            wanted.write(options.output)
        every = {"log_every": options.log_every, "validate_every": options.save_every, "save_every": options.save_every}
        train(
            options.legs,
            learner,
            options.output,
            device=device,
            seed=options.seed,
            resume=options.resume,
            workers=options.workers,
            precision=wanted.precision,
            **every,
        )
        if rank() == 0:
            print(
                f"{options.output}: checkpoint, {PLOT}; a folder per leg: {LOG}, {PLOT}, tensorboard, states",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--legs",
        type=parse_legs,
        default=parse_legs(DEFAULT_LEGS),
        help=f"NAME:STEPS,… of {', '.join(LEGS)} (default: {DEFAULT_LEGS})",
    )
    parser.add_argument("--init", type=Path, metavar="CHECKPOINT", help="a checkpoint folder, or a .safetensors file")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT where it was stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where the CPU has it, else fp32; what is resumed keeps its own",
    )
    parser.add_argument("--workers", type=int, choices=(0, 1), default=1, help="processes that draw scenes")
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--save-every", type=int, default=500, help="steps between states, and looks at fixed scenes")
    options = parser.parse_args()
    options.device = "cpu"  # scenes are tokenised and normalised for the CPU
    try:
        return command(body, options)
    except KeyboardInterrupt:
        return 130  # as shells report it


if __name__ == "__main__":
    sys.exit(main())
