"""Files of a checkpoint in a public model's version folder: configuration, vocabulary, weights of a head."""

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
    #: Image side at training, pixels. Box tokens are in units of it, whatever image size is served.
    trained_image_size: int

    @classmethod
    def read(cls, folder: Path) -> ServedCheckpoint:
        """Read a public model's version folder, as `builders/build.py` writes it."""
        served = json.loads((folder / SERVED_FILE).read_text())
        config = read_config(folder / "config.yaml", folder / "config_bert.json", task=served["tasks"][0])
        trained = config.vision.image_size
        config = replace(config, tasks=tuple(served["tasks"])).at_image_size(served["image_size"])
        return cls(config, Tokenizer(folder / "vocab.txt", config.text.vocab_size), trained)


@dataclass(frozen=True)
class Head:
    """`mplug.network.mplug.ClassificationHead` in NumPy; weights are `[outputs, inputs]`, as in PyTorch."""

    hidden_weight: np.ndarray
    hidden_bias: np.ndarray
    output_weight: np.ndarray
    output_bias: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Head:
        """Read the weights from a public model's version folder."""
        with np.load(folder / HEAD_FILE, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})

    def write(self, folder: Path) -> None:
        """Write the weights into a public model's version folder."""
        np.savez(folder / HEAD_FILE, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    def probabilities(self, states: np.ndarray) -> np.ndarray:
        """Return the probabilities `[classes]` for states `[inputs]`."""
        hidden = np.maximum(self.hidden_weight @ states + self.hidden_bias, 0.0)
        logits = self.output_weight @ hidden + self.output_bias
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()
