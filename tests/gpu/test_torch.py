"""PyTorch's stages on a real GPU: searches token for token, recordings, and states that stay on the device."""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.measure.decoding_requests import decode, mixed_requests
from benchmarks.parts.gpu_decoding import compare_mixed, contender, random_network
from benchmarks.presets import PRESETS
from builders.build import main as build
from mplug.checkpoint import load_checkpoint
from mplug.pipeline import Pipeline
from mplug.runtime import open_decoder
from mplug.runtime.interface import StageInfo
from mplug.runtime.torch import open_graph
from mplug.runtime.torch_device import TYPES

DATA = Path(__file__).parents[1] / "parity" / "data"
DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="session", params=["fp32", "fp16", "bf16"])
def repository(request, tmp_path_factory):
    """A golden checkpoint's repository; the builder compares every stage with PyTorch on the CPU."""
    output = tmp_path_factory.mktemp("torch") / request.param
    arguments = [str(DATA / "vqa"), "--output", str(output), "--target", "torch", "--precision", request.param]
    assert build(arguments) == 0
    return output


@pytest.fixture(scope="session")
def network():
    """Of fp64, where no rounding decides which of two sequences is better."""
    return random_network(PRESETS["quick"].sizes).double()


def test_requests_decoded_together_are_those_decoded_alone(network):
    assert compare_mixed(network.to(DEVICE), DEVICE, 256, 32) == 256


def test_searches_end_as_on_the_cpu(network):
    cpu = torch.device("cpu")
    found = decode(contender("recorded", network.to(DEVICE), DEVICE), mixed_requests(network, DEVICE, 64), 32)
    expected = decode(contender("recorded", network.to(cpu), cpu), mixed_requests(network, cpu, 64), 32)
    for one, other in zip(found, expected, strict=True):
        assert [each.token_ids for each in one] == [each.token_ids for each in other]
        np.testing.assert_allclose([each.score for each in one], [each.score for each in other], atol=1e-4)


def test_steps_are_recorded_and_cheaper_than_plain_ones(network):
    """A recording is one launch; the same step, operator by operator, is hundreds."""
    medians = {}
    for name in ("recorded", "plain"):
        decoder = contender(name, network.to(DEVICE), DEVICE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a step that cannot be recorded warns
            decode(decoder, mixed_requests(network, DEVICE, 32), 8)
        medians[name] = statistics.median([seconds_of_a_step(decoder) for _ in range(50)])
        assert list(decoder._steps.values())[-1].launch.is_recorded  # the size that was run last
        assert list(decoder._admissions.values())[-1].is_recorded
    sys.stderr.write("\n" + ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in medians.items()) + "\n")
    assert medians["recorded"] < medians["plain"]


def seconds_of_a_step(decoder):
    began = time.perf_counter()
    decoder.step(8, 5, 1)
    return time.perf_counter() - began


def test_a_repository_answers_from_the_gpu(repository):
    """Every stage on the GPU, the decoder in the precision that was built."""
    info = StageInfo.read(repository / "text_decoder" / "1")
    assert open_decoder(info.folder)._dtype == TYPES[info.precision]
    with Pipeline.open(repository) as pipeline:
        answers = pipeline.vqa(DATA / "vqa" / "image0.png", "what is it?")
    assert answers[0].token_ids and np.isfinite(answers[0].score)


def test_fused_states_stay_on_the_device(repository):
    """The decoder takes them from there; without cuda-python they would come to the host."""
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed (requirements-gpu.txt)")
    network, case = load_checkpoint(DATA / "vqa")[0], np.load(DATA / "vqa" / "tensors.npz")
    graph = open_graph(StageInfo.read(repository / "fusion_encoder" / "1"), "fusion_encoder")
    texts = case["text_embeds"]
    inputs = {
        "IMAGE_STATES": case["image_embeds"][: len(texts)],
        "TEXT_STATES": texts,
        "ATTENTION_MASK": case["attention_mask"].astype(np.int32),
    }
    states = graph(inputs)["FUSED_TEXT_STATES"]
    assert states.__dlpack_device__()[0] == 2
    with torch.inference_mode():
        wanted = network.fusion_encoder(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))[
            1
        ]
    assert np.abs(np.asarray(states) - wanted.numpy()).max() < 0.06 * np.abs(wanted.numpy()).max()
