"""Small legs for the tests, and a small network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from demo import train as demo_train
from demo.texts.vocabulary import build_vocabulary
from demo.training import look
from demo.training.config import demo_config
from demo.training.learner import DemoLearner
from demo.training.legs import LEGS, Leg, Mixture
from mplug.network import MPlug

FEW = Mixture(
    captions=4, questions=6, expressions=4, hypotheses=4, statements=4, contrasted=6, matches=4, masked=4, prefixes=4
)
PAIRS = dataclasses.replace(FEW, questions=0, expressions=0, hypotheses=0, statements=0)


def shrink() -> None:
    """Give every leg batches of eight scenes and few texts, and measure on few."""
    for name, leg in LEGS.items():
        mixture = {None: None, "pretrain": PAIRS}.get(leg.mixture and name, FEW)
        LEGS[name] = dataclasses.replace(leg, batch_size=8, mixture=mixture)
    few = dict.fromkeys(("questions", "expressions", "hypotheses", "statements", "matches"), 8)
    look.TEXTS = dataclasses.replace(look.TEXTS, **few)


def small_learner(leg: Leg) -> DemoLearner:
    """A narrow network with all of the demo's parts, the same every time."""
    config = demo_config(128, len(build_vocabulary()))
    vision = dataclasses.replace(config.vision, width=64, layers=1)
    text = dataclasses.replace(config.text, hidden_size=64, intermediate_size=128, heads=2, dropout=0.1)
    network = MPlug(dataclasses.replace(config, vision=vision, text=text, embed_dim=16))
    network.initialise(0)
    torch.manual_seed(0)
    return DemoLearner(network, leg, queue_size=16, validation_scenes=8)


def train(legs: list[tuple[str, int]], output: Path, device: torch.device, **options: object) -> DemoLearner:
    learner = small_learner(LEGS[legs[0][0]])
    every = {"log_every": 1, "save_every": 1, "validate_every": 0}
    demo_train.train(legs, learner, output, device=device, workers=0, **(every | options))
    return learner
