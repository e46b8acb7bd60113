"""Fine-tune a checkpoint for one task: ours, or published weights as they were downloaded.

    python builders/train/finetune.py vqa --init checkpoints/demo --data easy-vqa --steps 500 --output build/vqa
    python builders/train/finetune.py caption --cider --init build/caption/checkpoint --data emoji --steps 200 \
        --output build/cider

Tasks: caption (`--cider` after cross-entropy), vqa, retrieval, grounding, nlvr, entail. Parts that the checkpoint lacks
start from random weights, which is reported. The result, OUTPUT/checkpoint, is what builders/build.py takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from builders.train.checkpoint_folder import SERVED_TASKS, start_network
from builders.train.distributed import rank
from builders.train.engine import Learner
from builders.train.learners import LEARNERS
from builders.train.training_command import add_options, command, source_of, train
from builders.train.untaught_words import take_apart
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug

TASKS = tuple(task for task in LEARNERS if task != "pretrain")


def learner_for(options: argparse.Namespace) -> Callable[[MPlug, Tokenizer], Learner]:
    """What makes the learner of the task, with its own options. Raises ValueError for those of another."""
    if options.cider and options.task != "caption":
        raise ValueError(f"--cider belongs to the task caption, not {options.task}")
    if options.cider:
        from builders.train.objectives.cider import CiderLearner, CiderReward  # its scorer is not needed by other tasks

        reward = CiderReward(source_of("caption", options).captions(options.split, options.seed))
        return lambda network, tokenizer: CiderLearner(network, tokenizer, reward=reward, samples=options.samples)
    extra = {
        "retrieval": {"queue_size": options.queue_size, "alpha": options.alpha},
        "vqa": {"alpha": options.alpha},
    }.get(options.task, {})
    return lambda network, tokenizer: LEARNERS[options.task](network, tokenizer, **extra)


def body(options: argparse.Namespace, device: torch.device) -> None:
    """Load the checkpoint and train it."""
    network, vocabulary = start_network(
        options.init, SERVED_TASKS[options.task], image_size=options.image_size, seed=options.seed
    )
    if options.part_words:
        words = take_apart(network, Tokenizer(vocabulary, network.config.text.vocab_size))
        if rank() == 0:
            print(f"{len(words):,} words that {options.init} was never taught are taken apart", flush=True)
    train(options.task, options, network, vocabulary, learner_for(options), device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--init", type=Path, required=True, metavar="CHECKPOINT", help="folder, any published layout")
    parser.add_argument(
        "--part-words",
        action="store_true",
        help="first take apart the words that the checkpoint was never taught, where they have become alike",
    )
    parser.add_argument("--cider", action="store_true", help="caption: optimise CIDEr instead of cross-entropy")
    parser.add_argument("--samples", type=int, default=5, help="caption --cider: captions per picture")
    parser.add_argument("--alpha", type=float, default=0.4, help="vqa, retrieval: share of momentum soft targets (0.4)")
    parser.add_argument("--queue-size", type=int, default=65_536, help="retrieval: of the contrast")
    add_options(parser, learning_rate=2e-5, vision_learning_rate=5e-6)
    return command(body, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
