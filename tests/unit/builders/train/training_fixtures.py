"""A small network, a vocabulary and records to train on, for the tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch

from builders.data.readers.records import CaptionRecord, QuestionRecord
from builders.data.streams import ShuffledRecords
from builders.train.batches import TaskBatches, TensorMaker, first_batches
from builders.train.checkpoint_folder import SERVED_TASKS
from builders.train.engine import CPU, Settings, Trainer
from builders.train.learners import AnswerLearner, PretrainLearner
from mplug.config import GenerationConfig, MPlugConfig, TextConfig, VisionConfig
from mplug.inputs.tokenizer import SPECIAL_TOKENS, Tokenizer
from mplug.network import MPlug

WORDS = ("red", "green", "blue", "dark", "bright", "what", "colour", "is", "it", "a", "the", "of", "picture")
SIZE = 32  # pixels


def write_vocabulary(folder: Path) -> Path:
    """A vocabulary of a few words and all box tokens."""
    unused = [f"[unused{index}]" for index in range(339, 341 + SIZE)]
    path = folder / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *WORDS, *unused]) + "\n")
    return path


def small_config(vocab_size: int, dropout: float = 0.0) -> MPlugConfig:
    """One or two layers each; three of fusion, one of them connected."""
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        heads=2,
        max_positions=24,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        dropout=dropout,
        num_hidden_layers=3,
        text_encoder_layers=1,
        fusion_layers=3,
        stride_layer=2,
        text_decode_layers=1,
    )
    return MPlugConfig(
        vision=VisionConfig(image_size=SIZE, patch_size=16, width=64, layers=1),
        text=text,
        generation=GenerationConfig(5, 1, 10),
        tasks=SERVED_TASKS["pretrain"],
        embed_dim=16,
        max_text_length=12,
        caption_states="fused",
        prompt="a picture of",
    )


def small_network(vocabulary: Path, dropout: float = 0.0, seed: int = 0, **changes: object) -> MPlug:
    """A fresh network, the same for the same seed."""
    torch.manual_seed(seed)
    network = MPlug(replace(small_config(len(vocabulary.read_text().split()), dropout), **changes))
    network.initialise(seed)
    return network


def maker_of(network: MPlug, vocabulary: Path) -> TensorMaker:
    return TensorMaker(Tokenizer(vocabulary), network.config)


def pictures(count: int, seed: int = 0) -> list[tuple[np.ndarray, str, str]]:
    """Plain coloured pictures, dark or bright on one side; with the colour and the shade."""
    random, colours = Random(seed), {"red": 0, "green": 1, "blue": 2}
    found = []
    for _ in range(count):
        colour, shade = random.choice(list(colours)), random.choice(("dark", "bright"))
        image = np.random.default_rng(random.randrange(1 << 30)).integers(0, 40, (SIZE, SIZE, 3)).astype(np.uint8)
        image[..., colours[colour]] += 70 if shade == "dark" else 200
        found.append((image, colour, shade))
    return found


def caption_records(count: int) -> list[CaptionRecord]:
    return [
        CaptionRecord(str(i), image, (f"a {shade} {colour} picture",))
        for i, (image, colour, shade) in enumerate(pictures(count))
    ]


def question_records(count: int) -> list[QuestionRecord]:
    return [
        QuestionRecord(str(i), image, "what colour is it", (colour,))
        for i, (image, colour, _) in enumerate(pictures(count))
    ]


def settings(**changes: object) -> Settings:
    """A few steps in fp32, without processes beside."""
    return replace(
        Settings(
            steps=6,
            batch_size=4,
            learning_rate=1e-3,
            vision_learning_rate=1e-3,
            warmup=1,
            precision="fp32",
            log_every=2,
            validate_every=0,
            save_every=0,
            workers=0,
        ),
        **changes,
    )


def pretraining(
    vocabulary: Path, output: Path, options: Settings, resume: Path | None = None, device: torch.device = CPU
) -> Trainer:
    """Every objective of pre-training, with dropout and a look at pictures held back."""
    network = small_network(vocabulary, dropout=0.1)
    maker = maker_of(network, vocabulary)
    learner = PretrainLearner(network, maker.tokenizer, queue_size=12)
    batches = TaskBatches("pretrain", ShuffledRecords(caption_records(20), options.batch_size), maker)
    held_back = first_batches("pretrain", ShuffledRecords(caption_records(8), 4), maker, 2)
    return Trainer(
        learner, batches, options, output, device=device, validation=held_back, resume=resume, progress=False
    )


def answering(
    vocabulary: Path, output: Path, options: Settings, resume: Path | None = None, device: torch.device = CPU
) -> Trainer:
    """Questions and answers; nothing is drawn at random."""
    network = small_network(vocabulary)
    maker = maker_of(network, vocabulary)
    batches = TaskBatches("vqa", ShuffledRecords(question_records(32), options.batch_size), maker)
    learner = AnswerLearner(network, maker.tokenizer, alpha=0.0)
    return Trainer(learner, batches, options, output, device=device, resume=resume, progress=False)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies on the host of all that a learner holds."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in trainer.learner.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance, msg=name)


#: With `step_plainly`: gradients of norm 1 at most, known to some 1e-6 of that, times RATE, over three steps.
RATE, TOLERANCE = 0.1, 1e-5


def step_plainly(trainer: Trainer) -> Trainer:
    """Replace AdamW by plain gradient descent, for runs whose weights are compared within `TOLERANCE`.

    Sums in another order give gradients that differ in their last bits, differently on every processor. Gradient
    descent scales such differences by its rate; AdamW divides each gradient by its own size, so that one that is
    nothing but rounding becomes a whole step.
    """
    groups = [{**group, "lr": RATE, "full_rate": RATE} for group in trainer.optimiser.param_groups]
    trainer.optimiser = torch.optim.SGD([{key: g[key] for key in ("params", "lr", "full_rate")} for g in groups])
    return trainer


def assert_trained(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Weights have moved by far more than `TOLERANCE`, so that comparing them within it says something."""
    largest = max((after[name] - tensor).abs().max().item() for name, tensor in before.items())
    assert largest > 100 * TOLERANCE, f"no weight moved by more than {largest}"
