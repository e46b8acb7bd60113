"""What a public model keeps of its checkpoint: configuration and vocabulary, in its version folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mplug.config import MPlugConfig, read_config
from mplug.inputs.tokenizer import Tokenizer

SERVED_FILE = "served.json"
HEAD_FILE = "head.npz"


@dataclass(frozen=True)
class ServedCheckpoint:
    """Configuration and tokenizer of the checkpoint behind a public model."""

    config: MPlugConfig
    tokenizer: Tokenizer
    #: Image side that it was trained at, pixels: box tokens count in it, whatever size is served.
    trained_image_size: int

    @classmethod
    def read(cls, folder: Path) -> ServedCheckpoint:
        """From a public model's version folder, as builders/build.py leaves it."""
        served = json.loads((folder / SERVED_FILE).read_text())
        config = read_config(folder / "config.yaml", folder / "config_bert.json", task=served["tasks"][0])
        trained = config.vision.image_size
        config = replace(config, tasks=tuple(served["tasks"])).at_image_size(served["image_size"])
        return cls(config, Tokenizer(folder / "vocab.txt", config.text.vocab_size), trained)


@dataclass(frozen=True)
class Head:
    """`mplug.network.mplug.ClassificationHead` in NumPy; weights `[outputs, inputs]`, as PyTorch keeps them."""

    hidden_weight: np.ndarray
    hidden_bias: np.ndarray
    output_weight: np.ndarray
    output_bias: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Head:
        """From a public model's version folder."""
        with np.load(folder / HEAD_FILE, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})

    def write(self, folder: Path) -> None:
        """Into a public model's version folder."""
        np.savez(folder / HEAD_FILE, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    def probabilities(self, states: np.ndarray) -> np.ndarray:
        """States `[inputs]` → probabilities of the classes."""
        hidden = np.maximum(self.hidden_weight @ states + self.hidden_bias, 0.0)
        logits = self.output_weight @ hidden + self.output_bias
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()
