"""The ablation compares what it says: networks that differ in the stride alone, on the same batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from builders.train.batches import TensorMaker
from demo import ablation, ablation_speed
from demo.ablation import STRIDES, make_variant, variant_config
from demo.ablation_report import BEGIN, END, report
from mplug.checkpoint import load_checkpoint
from mplug.inputs.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def demo():
    network, _ = load_checkpoint(Path(__file__).parents[3] / "checkpoints/demo")
    return network


def test_which_layers_are_connected(demo):
    connected = {
        name: [index for index in range(6) if variant_config(demo.config, stride).text.fusion_layer_is_connected(index)]
        for name, stride in STRIDES.items()
    }
    assert connected == {"1": [1, 2, 3, 4, 5], "3": [3], "never": []}


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


def looks(*right: float) -> list[dict[str, float]]:
    return [{"step": 10 * (n + 1), "seconds": 1.0 * (n + 1), "answers": share} for n, share in enumerate(right)]


def test_the_report_puts_the_tables_between_its_marks(tmp_path, capsys):
    slow = {"parameters": 700_000, "steps": 20, "looks": looks(0.4, 0.5), "losses": [2.0, 1.0]}
    quick = {"parameters": 900_000, "steps": 40, "looks": looks(0.1, 0.2, 0.3, 0.6), "losses": [2.0, 1.0]}
    better = {**quick, "looks": looks(0.1, 0.3, 0.4, 0.7)}
    document = {
        "seeds": [{"variants": {"1": slow, "never": quick}}, {"variants": {"1": slow, "never": better}}],
        "base size, fusion encoder alone": {
            "224": {
                "training": {"1": [4.0, 2.0, 4.0], "never": [1.0, 1.0, 1.2]},
                "inference": {"1": [1.0, 1.0, 1.0], "never": [0.5, 0.6, 0.5]},
            }
        },
    }
    (tmp_path / "ablation.json").write_text(json.dumps(document))
    (tmp_path / "ablation.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    report(tmp_path)
    page = (tmp_path / "ablation.md").read_text()
    assert page.startswith("before") and page.endswith("after\n") and "old" not in page
    assert "| 1 (connected everywhere) | 0.70 M | 1.00 ± 0.00 × | 50.0 ± 0.0 | 50.0 ± 0.0 |" in page
    assert "| never (co-attention only) | 0.90 M | 2.00 ± 0.00 × | 25.0 ± 7.1 | 65.0 ± 7.1 |" in page
    assert "| 224 × 224 | 0.30 (0.25–0.50) | 0.50 (0.50–0.60) |" in page
    assert (tmp_path / "ablation.png").stat().st_size > 1000


def test_speed_is_measured_in_turns_for_every_stride(monkeypatch):
    monkeypatch.setattr(ablation_speed, "SIZES", {32: 5})
    measured = ablation_speed.seconds_by_size(STRIDES, 3, repeats=2)
    assert set(measured) == {"32"} and set(measured["32"]) == {"training", "inference"}
    for kind in measured["32"].values():
        assert set(kind) == set(STRIDES) and all(len(values) == 2 and min(values) > 0 for values in kind.values())


def test_networks_take_turns_until_each_has_had_its_time(demo, monkeypatch):
    monkeypatch.setattr(ablation, "POOL", 16)
    monkeypatch.setattr(ablation, "TEST_SCENES", 8)
    monkeypatch.setattr(ablation, "LOOK_EVERY", 2)
    _, files = load_checkpoint(Path(__file__).parents[3] / "checkpoints/demo")
    maker = TensorMaker(Tokenizer(files.vocabulary, demo.config.text.vocab_size), demo.config)
    measured = ablation.run_seed(demo.eval(), maker, 0, 0.01)
    assert set(measured["variants"]) == set(STRIDES) and measured["questions"] >= 8
    for variant in measured["variants"].values():
        assert variant["seconds"] >= 0.6 and variant["steps"] == variant["looks"][-1]["step"] > 0
        assert 0 <= variant["looks"][-1]["answers"] <= 1
    scenes = ablation.draw_scenes(6, 5)
    assert {group.class_index for scene in scenes for group in scene.groups} <= set(range(ablation.CLASSES))
