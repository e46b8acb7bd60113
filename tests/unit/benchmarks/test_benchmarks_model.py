"""The benchmarks' model: the random checkpoint, the floors that follow from its sizes, the baseline without a cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.base_checkpoint import vocabulary, write_checkpoint
from benchmarks.contenders.uncached import Uncached
from benchmarks.measure import floors, machine
from benchmarks.measure.machine import Limits, describe, measure_limits
from benchmarks.presets import CLS_ID, PRESETS, SEP_ID, TOKENS
from mplug.checkpoint import load_checkpoint
from mplug.decoding.beam_search import SearchOptions
from mplug.inputs.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[2] / "parity" / "data" / "caption"
SIZES = PRESETS["quick"].sizes
LIMITS = Limits(
    read_bandwidth=10e9,
    copy_bandwidth=80e9,
    triad_bandwidth=90e9,
    matmul_fp32=100e9,
    matmul_bf16=1e12,
    matmul_int8=2e12,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SIZES)


def test_checkpoint_loads_as_a_published_captioner(checkpoint: Path) -> None:
    network, files = load_checkpoint(checkpoint)
    assert network.config.caption_states == "image" and network.config.tasks == ("image-captioning",)
    assert network.config.generation.min_length == network.config.generation.max_length == TOKENS
    assert network.config.vision.tokens == SIZES.image_tokens
    tokenizer = Tokenizer(files.vocabulary, SIZES.vocab_size)
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.token_id("[unused339]")) == (CLS_ID, SEP_ID, 344)


def test_checkpoint_is_the_same_from_the_same_seed(checkpoint: Path, tmp_path: Path) -> None:
    again, other = write_checkpoint(tmp_path / "again", SIZES), write_checkpoint(tmp_path / "other", SIZES, seed=1)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (checkpoint, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_vocabulary_of_base_size() -> None:
    tokens = vocabulary(PRESETS["base"].sizes.vocab_size)
    assert len(tokens) == len(set(tokens)) == 30_522 and tokens[999 - 1] == "[unused993]"
    with pytest.raises(ValueError, match="too small for BERT"):
        vocabulary(100)


def test_floors_count_the_matrices_of_the_network(checkpoint: Path) -> None:
    network, _ = load_checkpoint(checkpoint)

    def matrices(module: nn.Module) -> dict[str, int]:
        kinds = (nn.Linear, nn.Conv2d)
        return {name: part.weight.numel() for name, part in module.named_modules() if isinstance(part, kinds)}

    decoder = matrices(network.text_decoder)
    made_before = ("cross_attention.key", "cross_attention.value")
    before = sum(size for name, size in decoder.items() if name.endswith(made_before))
    embedding = network.text_decoder.embeddings.word.weight.numel()
    assert floors.prefill_weights(SIZES) == before
    assert floors.step_weights(SIZES) == sum(decoder.values()) - before + embedding
    assert floors.vision_weights(SIZES) == sum(matrices(network.vision_encoder).values())


def test_floor_is_the_longer_of_two_times() -> None:
    memory, arithmetic = floors.Work(bytes=10e9, operations=1e9), floors.Work(bytes=1e9, operations=2e12)
    assert memory.seconds(LIMITS, "bf16") == 1.0 and memory.bound_by(LIMITS, "bf16") == "memory"
    assert arithmetic.seconds(LIMITS, "bf16") == 2.0 and arithmetic.bound_by(LIMITS, "bf16") == "arithmetic"
    assert arithmetic.seconds(LIMITS, "fp32") == 20.0 and arithmetic.seconds(LIMITS, "int8") == 1.0
    attention = floors.Work(bytes=1e9, operations=0, attention=2e12)  # never in whole numbers
    assert attention.seconds(LIMITS, "int8") == attention.seconds(LIMITS, "bf16") == 2.0
    assert (arithmetic + attention).seconds(LIMITS, "int8") == 3.0 and attention.scaled(2).attention == 4e12
    assert (memory + arithmetic).bytes == 11e9 and memory.scaled(2).operations == 2e9


def test_work_of_a_step_at_base_size() -> None:
    sizes = PRESETS["base"].sizes
    one = floors.step_work(sizes, "bf16", sequences=1, beams=5, position=0)
    # 12 layers of 6 · 768² + 2 · 768 · 3072, head and word embedding, two bytes each; and 21 MB of cross-attention.
    assert one.bytes == pytest.approx(2 * (12 * 8_257_536 + 768**2 + 30_522 * 768) + 4 * 12 * 577 * 768)
    sixteen = floors.step_work(sizes, "bf16", sequences=16, beams=5, position=0)
    assert sixteen.operations == pytest.approx(16 * one.operations) and sixteen.bytes < 3 * one.bytes
    later = floors.step_work(sizes, "bf16", sequences=1, beams=5, position=19)
    assert one.bytes < later.bytes < 1.05 * one.bytes
    assert floors.step_work(sizes, "fp32", sequences=1, beams=5, position=0).bytes == 2 * one.bytes


def test_work_of_the_encoders_grows_with_images_and_states() -> None:
    one, two = (floors.vision_work(SIZES, "bf16", images) for images in (1, 2))
    assert two.operations == 2 * one.operations and two.bytes == one.bytes
    assert floors.prefill_work(SIZES, "bf16", 100).operations == 100 * 2 * floors.prefill_weights(SIZES)
    larger = replace(SIZES, image_size=2 * SIZES.image_size)
    assert floors.vision_work(larger, "bf16").operations > 3.5 * one.operations


def test_limits_are_measured() -> None:
    limits = measure_limits(matrix_side=64, array_mib=1)
    assert all(limit > 0 for limit in asdict(limits).values())
    assert limits.arithmetic("int8") >= limits.arithmetic("bf16") >= limits.arithmetic("fp32")


def test_large_products_of_an_emulated_precision_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []

    def best_seconds(run: Callable[[], Tensor]) -> float:
        product = run()
        sides.append(len(product))
        return 10.0 if product.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(machine, "best_seconds", best_seconds)
    machine.product_rate("fp32", 512)
    assert max(sides) == 512
    sides.clear()
    machine.product_rate("bf16", 512)
    assert max(sides) == machine.SMALL_SIDE and machine.is_emulated("bf16") and not machine.is_emulated("fp32")


def test_the_higher_limits_count() -> None:
    better = replace(LIMITS, read_bandwidth=20e9, matmul_bf16=1e9).or_better(LIMITS)
    assert better == replace(LIMITS, read_bandwidth=20e9)


def test_floor_of_a_caption_is_that_of_its_stages() -> None:
    sizes = PRESETS["base"].sizes
    works = floors.caption_work(sizes, "int8", beams=5, tokens=20)
    single = floors.step_work(sizes, "int8", sequences=1, beams=5, position=0)
    assert 20 * single.bytes < works["step"].bytes < 20.5 * single.bytes
    seconds = floors.caption_seconds(sizes, "int8", LIMITS, beams=5, tokens=20)
    assert seconds == pytest.approx(sum(work.seconds(LIMITS, "int8") for work in works.values()))
    alone = floors.captions_per_second(sizes, "int8", LIMITS, beams=5, tokens=20, sequences=1)
    shared = floors.captions_per_second(sizes, "int8", LIMITS, beams=5, tokens=20, sequences=16)
    assert alone == pytest.approx(1 / seconds, rel=0.01) and shared > 1.5 * alone


def test_baseline_computes_in_the_quicker_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    blip = pytest.importorskip("benchmarks.contenders.blip")
    seconds = iter([3.0, 2.0])
    emulated: set[str] = set()
    monkeypatch.setattr(blip, "best_seconds", lambda run, tries: next(seconds))
    monkeypatch.setattr(blip, "is_emulated", emulated.__contains__)
    assert list(blip.PRECISIONS.values()) == ["bf16", "fp32"]
    assert blip.best_blip(SIZES).precision == "fp32"
    seconds = iter([5.0])
    emulated.add("bf16")  # not even tried
    assert blip.best_blip(SIZES).precision == "fp32" and next(seconds, None) is None


def test_machine_is_named() -> None:
    found = describe()
    assert found["cpu"] and found["cores"] >= 1 and found["memory_gib"] > 0 and "torch" in found["versions"]
    json.dumps(found)


@pytest.mark.parametrize("case", [0, 1])
def test_without_a_cache_the_published_tokens_come_out(case: int) -> None:
    """The baseline does the same work: token for token what the published implementation answers."""
    network, _ = load_checkpoint(GOLDEN)
    with np.load(GOLDEN / "tensors.npz") as archive:
        pixels = archive["pixel_values"]
    golden = json.loads((GOLDEN / "expected.json").read_text())["beam_search"][case]
    beams, penalty = golden["num_beams"], golden["length_penalty_alpha"]
    options = SearchOptions(beams, golden["min_length"], golden["max_length"], beams, penalty, SEP_ID)
    captioner = Uncached(network, CLS_ID)
    for image, nbest in zip(pixels, golden["nbest"], strict=True):
        found = captioner.caption(image, options)
        assert [[CLS_ID, *each.token_ids] for each in found] == [each["ids"] for each in nbest]
        assert [each.score for each in found] == pytest.approx([each["score"] for each in nbest], abs=1e-3)
