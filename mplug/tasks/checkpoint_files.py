"""What a public model keeps of its checkpoint: configuration and vocabulary, in its version folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from mplug.config import MPlugConfig, read_config
from mplug.inputs.tokenizer import Tokenizer

SERVED_FILE = "served.json"


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
