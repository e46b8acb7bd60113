"""Pre-train mPLUG with its four objectives together: contrast, matching, masked and prefix language modelling.

    python builders/train/pretrain.py --data emoji --steps 2000 --output build/pretrain
    torchrun --nproc-per-node 8 builders/train/pretrain.py --config base --vocabulary vocab.txt --data coco \
        --annotations dataset_coco.json --images coco --steps 100000 --output build/pretrain

The network is new (`--config`: demo, base, large, or a folder with config.yaml and config_bert.json) or a checkpoint's
(`--init`). `--resume` goes on with a run, bit for bit. The result, OUTPUT/checkpoint, is what finetune.py starts from.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from builders.train.checkpoint_folder import SERVED_TASKS, new_network, start_network
from builders.train.distributed import rank
from builders.train.learners import PretrainLearner
from builders.train.objectives.contrastive import ALPHA, QUEUE_SIZE
from builders.train.training_command import add_options, command, source_of, train
from mplug.network import MPlug

CONFIGS = Path(__file__).parent / "configs"


def start(options: argparse.Namespace) -> tuple[MPlug, Path]:
    """The network and its vocabulary. Raises ValueError where the vocabulary is not said."""
    tasks = SERVED_TASKS["pretrain"]
    if options.init is not None:
        return start_network(options.init, tasks, image_size=options.image_size, seed=options.seed)
    named = CONFIGS / options.config
    folder = named if named.is_dir() else Path(options.config)
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in CONFIGS.iterdir()))
        raise ValueError(f"--config {options.config}: neither one of {known} nor a folder")
    network = new_network(folder, tasks, image_size=options.image_size, seed=options.seed)
    if options.vocabulary is not None:
        return network, options.vocabulary
    options.output.mkdir(parents=True, exist_ok=True)
    vocabulary = options.output / (f"vocab.{rank()}.txt" if rank() else "vocab.txt")
    source_of("pretrain", options).write_vocabulary(vocabulary)
    return network, vocabulary


def body(options: argparse.Namespace, device: torch.device) -> None:
    """Build the network and train it."""
    network, vocabulary = start(options)
    train(
        "pretrain",
        options,
        network,
        vocabulary,
        lambda network, tokenizer: PretrainLearner(
            network, tokenizer, queue_size=options.queue_size, alpha=options.alpha
        ),
        device,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_argument_group("network")
    source.add_argument("--config", default="demo", help="sizes of a new network (demo)")
    source.add_argument("--vocabulary", type=Path, help="vocab.txt of a new network; emoji scenes bring their own")
    source.add_argument("--init", type=Path, metavar="CHECKPOINT", help="start from a checkpoint folder instead")
    source.add_argument("--queue-size", type=int, default=QUEUE_SIZE, help=f"of the contrast ({QUEUE_SIZE})")
    source.add_argument("--alpha", type=float, default=ALPHA, help=f"share of soft targets ({ALPHA})")
    add_options(parser, learning_rate=1e-4, vision_learning_rate=1e-5)
    return command(body, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
