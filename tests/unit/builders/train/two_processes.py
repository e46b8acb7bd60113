"""Run by torchrun in a test: train the contrast for three steps, and write the weights of process 0.

torchrun --nproc-per-node 2 tests/unit/builders/train/two_processes.py VOCABULARY OUTPUT BATCH_SIZE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from training_fixtures import caption_records, maker_of, settings, small_network, step_plainly

from builders.data.streams import ShuffledRecords
from builders.train.batches import TaskBatches
from builders.train.distributed import process_group, rank, world_size
from builders.train.engine import Trainer
from builders.train.fused_states import token_mask
from builders.train.learners import PairLearner


class ContrastLearner(PairLearner):
    """Contrast alone: negatives for matching are drawn among a process' own pairs, which differ by their number."""

    parts = ("vision_encoder", "text_encoder", "vision_projection", "text_projection")

    def losses(self, batch, done, image_states):
        ids = batch["text_ids"]
        mask = token_mask(ids)
        found = self.contrast(
            self.network,
            image_states,
            self.network.text_encoder(ids, mask),
            batch["pixel_values"],
            ids,
            mask,
            ids=batch["pair_ids"],
        )
        self._waiting.append(found)
        return {"contrast": found.loss}


def main(vocabulary: Path, output: Path, batch_size: int) -> None:
    torch.set_num_threads(1)
    with process_group("cpu") as device:
        network = small_network(vocabulary)
        learner = ContrastLearner(network, maker_of(network, vocabulary).tokenizer, queue_size=12)
        records = ShuffledRecords(caption_records(40), batch_size, rank=rank(), world=world_size())
        batches = TaskBatches("pretrain", records, maker_of(network, vocabulary))
        options = settings(steps=3, batch_size=batch_size, accumulate=2, log_every=1)
        step_plainly(Trainer(learner, batches, options, output, device=device, progress=False)).run()
        if rank() == 0:
            torch.save(learner.state_dict(), output / "learner.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
