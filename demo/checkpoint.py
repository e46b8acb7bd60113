"""Trained weights → `checkpoints/demo`: the four files of a checkpoint, weights in half precision.

python demo/checkpoint.py build/train/model.safetensors checkpoints/demo
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from builders.train.checkpoint_folder import write_checkpoint
from demo.texts.vocabulary import write_vocabulary
from demo.train import demo_config
from demo.training.batches import SCENE_SIZE
from mplug.checkpoint import load_weights, read_state_dict
from mplug.network import MPlug


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = Path(scratch) / "vocab.txt"
        network = MPlug(demo_config(SCENE_SIZE, write_vocabulary(vocabulary)))
        load_weights(network, read_state_dict(options.weights), source=options.weights)
        write_checkpoint(network, vocabulary, options.folder)


if __name__ == "__main__":
    main()
