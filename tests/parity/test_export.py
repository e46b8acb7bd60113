"""Exported graphs: names and axes of the contract, and PyTorch's numbers at sizes that they were not traced at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from golden import DATA, assert_close, tensors, vision_inputs
from torch import nn

from builders.compile.export import OPSET, example_inputs, export
from builders.compile.openvino import PIXEL_TABLE, compile_graph
from mplug.checkpoint import load_checkpoint
from mplug.contract import GraphSpec
from mplug.inputs.normalisation import LEVELS
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.runtime.interface import StageInfo
from mplug.runtime.openvino import open_graph

SEP = 102
#: The golden case that a graph is taken from: one with all of its outputs.
CASES = {
    "vision_encoder": "retrieval",
    "vision_encoder behind a stem": "retrieval",
    "text_encoder": "retrieval",
    "fusion_encoder": "retrieval",
    "text_decoder_prefill": "vqa",
    "text_decoder_step": "vqa",
    "text_decoder_score": "vqa",
}
#: Lengths of dynamic axes, by letter: every one at its least, and all different and larger than traced.
SIZES = {
    "least": {"B": 1, "L": 2, "S": 1, "M": 1, "T": 1, "C": 1, "A": 1, "P": 1, "G": 1},
    "large": {"B": 5, "L": 13, "S": 9, "M": 8, "T": 26, "C": 8, "A": 71, "P": 7, "G": 4},
}
RUNTIMES = ("onnxruntime", "openvino")


@cache
def network_of(case: str, *, stem: bool = False) -> MPlug:
    network = load_checkpoint(DATA / case)[0]
    if not stem:
        return network
    vision = replace(network.config.vision, patch_size=8, stem=(16, 32))  # ours alone: no published checkpoint has one
    stemmed = MPlug(replace(network.config, vision=vision)).eval()
    stemmed.initialise(by_width=True)
    return stemmed


def graph_of(name: str) -> tuple[GraphSpec, nn.Module, MPlug]:
    graph_name, _, stem = name.partition(" behind a ")
    network = network_of(CASES[name], stem=bool(stem))
    graphs = {spec.name: (spec, graph) for spec, graph in graphs_of(network, SEP)}
    return *graphs[graph_name], network


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`exported(name)`: the graph's ONNX file, alone in its folder; each is exported once."""

    @cache
    def make(name: str) -> Path:
        spec, graph, network = graph_of(name)
        path = tmp_path_factory.mktemp(name) / f"{name}.onnx"
        export(spec, graph, example_inputs(spec, network), path)
        return path

    return make


def run(runtime: str, path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs in fp32, on one thread."""
    if runtime == "onnxruntime":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    results = compiled(inputs)
    return [results[index] for index in range(len(compiled.outputs))]


@pytest.mark.parametrize("name", CASES)
def test_the_file_says_what_the_contract_says(exported: Callable[[str], Path], name: str) -> None:
    path, (spec, _, _) = exported(name), graph_of(name)
    assert list(path.parent.iterdir()) == [path]  # weights and all
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {(entry.domain, entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")} == {
        ("", OPSET)
    }
    assert all(node.domain in ("", "ai.onnx") for node in model.graph.node)
    types = {"FP32": onnx.TensorProto.FLOAT, "INT32": onnx.TensorProto.INT32, "UINT8": onnx.TensorProto.UINT8}
    assert [value.name for value in model.graph.output] == spec.output_names
    assert [value.name for value in model.graph.input] == spec.input_names
    for value, tensor in zip(model.graph.input, spec.inputs, strict=True):
        assert value.type.tensor_type.elem_type == types[tensor.dtype]
        axes = value.type.tensor_type.shape.dim
        assert len(axes) == len(tensor.axes)
        for index, axis in enumerate(axes):
            assert bool(axis.dim_param) == (index in tensor.dynamic_axes), f"{tensor.name} axis {index}"
    for value, tensor in zip(model.graph.output, spec.outputs, strict=True):
        assert value.type.tensor_type.elem_type == types[tensor.dtype]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_numbers_at_other_sizes(exported: Callable[[str], Path], name: str, sizes: str, runtime: str) -> None:
    spec, graph, network = graph_of(name)
    inputs = example_inputs(spec, network, seed=3, **SIZES[sizes])
    if sizes == "least":
        for mask in (tensor for key, tensor in inputs.items() if key.endswith("MASK")):
            mask.fill_(1)  # nothing at all to attend to is never asked
    with torch.inference_mode():
        references = [tensor.numpy() for tensor in graph(*inputs.values())]
    outputs = run(runtime, exported(name), {key: tensor.numpy() for key, tensor in inputs.items()})
    for key, output, reference in zip(spec.output_names, outputs, references, strict=True):
        if output.dtype.kind == "i":
            np.testing.assert_array_equal(output, reference, key)
        else:
            assert_close(output, reference, f"{key} at {SIZES[sizes]}")


def test_golden_encoders(exported: Callable[[str], Path]) -> None:
    """The published implementation's own tensors, out of the files that are compiled."""
    golden = tensors("retrieval")
    states, projection = run("onnxruntime", exported("vision_encoder"), vision_inputs("retrieval"))
    assert_close(states, golden["image_embeds"], "image_embeds")
    assert_close(normalised(projection), golden["image_feat"], "image_feat")
    mask = golden["attention_mask"].astype(np.int32)
    texts = {"INPUT_IDS": golden["input_ids"].astype(np.int32), "ATTENTION_MASK": mask}
    text_states, projection = run("onnxruntime", exported("text_encoder"), texts)
    assert_close(text_states, golden["text_embeds"], "text_embeds")
    assert_close(normalised(projection), golden["text_feat"], "text_feat")
    for image in range(len(states)):
        pairs = {
            "IMAGE_STATES": np.repeat(states[image][None], len(text_states), axis=0),
            "TEXT_STATES": text_states,
            "ATTENTION_MASK": mask,
        }
        *_, logits = run("onnxruntime", exported("fusion_encoder"), pairs)
        assert_close(logits, golden["itm_logits"][image], "itm_logits")


def normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", ["vision_encoder", "text_encoder"])
def test_int8_weighs_half_and_stays_near(exported: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """As it is served: weights in 8 bits, and activations too where the CPU multiplies bytes (VNNI).

    A rounding to 8 bits costs a product up to 1 % (half of 1/127 of the largest weight of a row), and the roundings of
    a dozen products add up to less than 10 %. Less than 0.01 % would mean that nothing was rounded. Both bounds hold
    with and without VNNI: without it only the weights are rounded.
    """
    spec, graph, network = graph_of(name)
    inputs = example_inputs(spec, network, seed=4)
    with torch.inference_mode():
        references = [tensor.numpy() for tensor in graph(*inputs.values())]
    weights = {}
    for precision in ("bf16", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        compile_graph(exported(name), folder, precision)
        weights[precision] = (folder / f"{name}.bin").stat().st_size
    assert weights["int8"] < weights["bf16"] * (0.6 if name == "vision_encoder" else 1)  # texts: embeddings weigh most
    info = StageInfo(tmp_path / "int8", "openvino", "int8", {"hidden_size": network.config.text.hidden_size}, {})
    if name == "vision_encoder":  # normalised values are no weights: as exact as halves are
        nodes = openvino.Core().read_model(tmp_path / "int8" / f"{name}.xml").get_ops()
        (table,) = (node for node in nodes if node.get_friendly_name() in (PIXEL_TABLE, f"{PIXEL_TABLE}_compressed"))
        np.testing.assert_allclose(table.data.astype(np.float32), LEVELS.flatten(), rtol=2**-11)
    outputs = open_graph(info, name)({key: tensor.numpy() for key, tensor in inputs.items()})
    for key, reference in zip(spec.output_names, references, strict=True):
        error = np.linalg.norm(outputs[key] - reference) / np.linalg.norm(reference)
        assert 1e-4 < error < 0.1, f"{key}: relative error {error:.1e}"
