"""The ablation's speed at published base size: the fusion encoder alone, random weights, at several image sizes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from mplug.config import TextConfig
from mplug.network.fusion_encoder import FusionEncoder

SIZES = {224: 197, 384: 577, 512: 1025}  #: pixels → image tokens, with patches of 16
TEXT_TOKENS = 20
REPEATS = 5


def fusion_encoder(stride: int, layers: int) -> FusionEncoder:
    """Return a fusion encoder of published base size, on random weights."""
    text = base_sizes()
    return FusionEncoder(
        TextConfig(
            vocab_size=100,
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            heads=text["num_attention_heads"],
            max_positions=64,
            type_vocab_size=2,
            layer_norm_eps=1e-12,
            dropout=0.0,
            num_hidden_layers=layers,
            text_encoder_layers=1,
            fusion_layers=layers,
            stride_layer=stride,
            text_decode_layers=1,
        )
    )


def base_sizes() -> dict:
    """Return the BERT sizes of published base."""
    return json.loads((Path(__file__).parents[1] / "builders/train/configs/base/config_bert.json").read_text())


def seconds_by_size(strides: dict[str, int], layers: int, repeats: int = REPEATS) -> dict[str, dict[str, dict]]:
    """Return CPU seconds by image size, kind of pass and stride, one value a repeat.

    The networks take turns within each repeat, so that values of the same repeat can be divided by each other. The
    first repeat warms up and is left out. `training` is forward and backward.
    """
    networks = {name: fusion_encoder(stride, layers) for name, stride in strides.items()}
    width = base_sizes()["hidden_size"]
    measured: dict[str, dict[str, dict[str, list[float]]]] = {}
    for size, tokens in SIZES.items():
        image, words, mask = (
            torch.randn(1, tokens, width),
            torch.randn(1, TEXT_TOKENS, width),
            torch.ones(1, TEXT_TOKENS),
        )
        found = measured[str(size)] = {kind: {name: [] for name in networks} for kind in ("training", "inference")}
        for repeat in range(repeats + 1):
            for kind in found:
                for name, network in networks.items():
                    started = time.process_time()
                    with torch.set_grad_enabled(kind == "training"), torch.autocast("cpu", torch.bfloat16):
                        fused = network(image, words, mask)
                    if kind == "training":
                        sum(states.float().sum() for states in fused).backward()
                    if repeat:
                        found[kind][name].append(time.process_time() - started)
    return measured
