"""Run by torchrun in a test: pre-train from WebDataset shards, and write down which pictures each process saw.

torchrun … tests/unit/builders/train/shard_run.py VOCABULARY SHARDS OUTPUT BATCH_SIZE UNTIL [STATE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from training_fixtures import maker_of, settings, small_network

from builders.data.readers.webdataset import Shards, ShardStream, find_shards
from builders.train.batches import TaskBatches, first_batches
from builders.train.distributed import process_group, rank, world_size
from builders.train.engine import Trainer
from builders.train.learners import PretrainLearner

STEPS = 4


class SeenStream(ShardStream):
    """Writes down the keys of every batch."""

    log: Path

    def batch(self, index):
        records = super().batch(index)
        with self.log.open("a") as stream:
            stream.write(json.dumps([index, [record.key for record in records]]) + "\n")
        return records


def run(vocabulary: Path, shards: Path, output: Path, batch_size: int, until: int, state: Path | None) -> Trainer:
    """Train as one of the processes there are; a state is saved after every second step."""
    torch.set_num_threads(1)
    with process_group("cpu") as device:
        output.mkdir(parents=True, exist_ok=True)
        network = small_network(vocabulary, dropout=0.1)
        maker = maker_of(network, vocabulary)
        stream = SeenStream(Shards(find_shards(shards)), batch_size, seed=5, rank=rank(), world=world_size())
        stream.log = output / f"seen-{rank()}.jsonl"
        looked_at = ShardStream(Shards(find_shards(shards / "val")), 2)
        validation = first_batches("pretrain", looked_at, maker, 3, rank=rank(), world=world_size())
        trainer = Trainer(
            PretrainLearner(network, maker.tokenizer, queue_size=12),
            TaskBatches("pretrain", stream, maker),
            settings(steps=STEPS, batch_size=batch_size, save_every=2, validate_every=2, log_every=1),
            output,
            device=device,
            validation=validation,
            resume=state,
            progress=False,
        )
        trainer.run(until)
    return trainer


if __name__ == "__main__":
    vocabulary, shards, output, batch_size, until, *state = sys.argv[1:]
    run(Path(vocabulary), Path(shards), Path(output), int(batch_size), int(until), Path(state[0]) if state else None)
