"""The ablation compares what it says: networks that differ in the stride alone, on the same batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from demo.ablation import STRIDES, make_variant, variant_config
from demo.ablation_report import BEGIN, END, report, table
from mplug.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def demo():
    network, _ = load_checkpoint(Path(__file__).parents[3] / "checkpoints/demo")
    return network


def test_which_layers_are_connected(demo):
    connected = {
        name: [index for index in range(6) if variant_config(demo.config, stride).text.fusion_layer_is_connected(index)]
        for name, stride in STRIDES.items()
    }
    assert connected == {"1": [1, 2, 3, 4, 5], "2": [2, 4], "3": [3], "never": []}


def test_variants_start_equal_and_look_through_one_frozen_encoder(demo):
    first, last = (make_variant(demo, STRIDES[name], 0).network for name in ("1", "never"))
    shared = dict(last.named_parameters())
    compared = 0
    for name, parameter in first.named_parameters():
        if name in shared:
            assert torch.equal(parameter, shared[name]), name
            compared += 1
    assert compared > 100
    frozen = {name for name, parameter in first.named_parameters() if not parameter.requires_grad}
    assert frozen and all(name.startswith("vision_encoder.") and "projection" not in name for name in frozen)
    assert torch.equal(first.vision_encoder.blocks[0].expand.weight, demo.vision_encoder.blocks[0].expand.weight)


def test_the_report_puts_the_table_between_its_marks(tmp_path, capsys):
    variant = {
        "parameters": 700_000,
        "training samples per second, ratio": 1.5,
        "inference time, ratio": 0.9,
        "answers right": 0.5,
        "answers standard error": 0.02,
        "captions right": 0.25,
        "captions standard error": 0.03,
        "looks": [{"step": 10, "answers": 0.5, "captions": 0.25}],
        "losses": [2.0, 1.0],
    }
    document = {
        "steps": 10,
        "variants": {"1": variant, "never": variant},
        "base size, fusion encoder alone": {
            "1": {"training": 4.0, "inference": 1.0},
            "never": {"training": 1.0, "inference": 0.5},
        },
    }
    (tmp_path / "ablation.json").write_text(json.dumps(document))
    (tmp_path / "ablation.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    report(tmp_path)
    page = (tmp_path / "ablation.md").read_text()
    assert page.startswith("before") and page.endswith("after\n") and "old" not in page and table(document) in page
    assert "| never (co-attention only) | 0.70 M | 1.50 × | 0.90 | 0.25 / 0.50 | 50.0 ± 2.0 % | 25.0 ± 3.0 % |" in page
    assert (tmp_path / "ablation.png").stat().st_size > 1000
