"""Graphs in fp16 and bf16 beside PyTorch in fp32: per output, and over whole searches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from golden import tensors, vision_inputs
from half_precision import GRAPHS, SEP, graph_of, network_of, onnx_of
from onnx import TensorProto, helper, numpy_helper

from builders.compile.compare import TOLERANCES, compare_decoders
from builders.compile.tensorrt_check import OnnxGraph, compare_onnx, onnx_decoder
from builders.compile.tensorrt_precision import HALF_TYPES, PrecisionError, rounded_emulation, to_half
from demo.agreement import Agreement, caption_agreement, search_agreement, table, write_into
from mplug.runtime.graph_decoder import GraphDecoder

CLS = 101
DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"
#: Captions that the demo checkpoint is to give in fp16 as in fp32. The command line takes more.
DEMO_SCENES = 12
PRECISIONS = tuple(HALF_TYPES)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("case", "name"), GRAPHS)
def test_every_output_is_within_its_tolerance(case, name, precision):
    spec, graph = graph_of(case, name)
    errors = compare_onnx(OnnxGraph(onnx_of(case, name, precision), precision), spec, graph, network_of(case))
    assert errors and max(errors.values()) < TOLERANCES[precision], errors
    if precision == "fp16":  # rounding is what differs, and it is felt
        assert min(errors.values()) > 1e-6, errors


@pytest.mark.parametrize("precision", PRECISIONS)
def test_steps_that_swap_ancestors(precision):
    decoder = half_decoder("caption", precision)
    errors = compare_decoders(decoder, network_of("caption"), SEP)
    assert errors["LOG_PROBABILITIES"] < TOLERANCES[precision]


def half_decoder(case: str, precision: str) -> GraphDecoder:
    graphs = (OnnxGraph(onnx_of(case, f"text_decoder_{part}", precision), precision) for part in ("prefill", "step"))
    return onnx_decoder(network_of(case), *graphs)


def test_whole_searches_in_fp16_end_as_in_fp32():
    """From pixels to tokens; what random weights leave to near-ties apart."""
    network = network_of("caption")
    vision = OnnxGraph(onnx_of("caption", "vision_encoder", "fp16"), "fp16")
    states = vision(vision_inputs("caption"))["IMAGE_STATES"]
    agreement = search_agreement(
        network, SEP, [CLS], half_decoder("caption", "fp16"), list(tensors("caption")["image_embeds"]), list(states)
    )
    assert agreement.requests == len(states)
    # A score sums a dozen log-probabilities of ten or so, each off by fp16 rounding that differs between CPUs.
    assert agreement.share >= 0.8 and agreement.worst_score < 0.05, agreement


@pytest.mark.skipif(not (DEMO / "config.yaml").exists(), reason="checkpoints/demo is not here")
def test_the_demo_checkpoint_captions_in_fp16_as_in_fp32(tmp_path):
    agreement = caption_agreement(DEMO, ["fp16"], DEMO_SCENES, tmp_path)["fp16"]
    assert agreement.share >= 0.99 if agreement.requests >= 100 else agreement.requests - agreement.same <= 1, agreement


def test_the_result_takes_its_place_in_a_page(tmp_path):
    agreements = {"fp16": Agreement(500, 499, 0.01234), "bf16": Agreement(500, 400, 0.5)}
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- agreement -->\nold\n<!-- end of agreement -->\nafter\n")
    for _ in range(2):
        write_into(page, table(agreements, "demo", "2026-01-02"))
    text = page.read_text()
    assert text.startswith("before\n<!-- agreement -->\n| precision |") and text.endswith("agreement -->\nafter\n")
    assert "| fp16 | 499 of 500 (99.8%) | 0.0123 |" in text and "| bf16 | 400 of 500 (80.0%) | 0.5000 |" in text
    assert "old" not in text and text.count("Measured on `demo`, 2026-01-02.") == 1
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no place for the result"):
        write_into(page, "x")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("case", "name"), GRAPHS)
def test_all_weights_and_products_are_half(case, name, precision):
    model = onnx.load(onnx_of(case, name, precision))
    half = HALF_TYPES[precision]
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1 and is_float(tensor)}
    assert kinds == {half}
    types = types_of(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    sums = []
    for node in model.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax", "Gelu"):
            assert types[node.output[0]] == half, node.name
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            if precision == "fp16":  # half-precision factors, summed in fp32, rounded once
                sums.append(node)
                factors = [producers[name] for name in node.input]
                assert all(factor.op_type == "Cast" and types[factor.input[0]] == half for factor in factors), node.name
                users = [user for user in model.graph.node if node.output[0] in user.input]
                assert [user.op_type for user in users] == ["Cast"] and types[users[0].output[0]] == half, node.name
            assert types[node.output[0]] == (TensorProto.FLOAT if precision == "fp16" else half), node.name
        if node.op_type in ("Exp", "Log", "TopK"):
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
    around = {name for node in sums for name in node.input} | {node.output[0] for node in sums}
    casts = Counter(node.op_type for node in model.graph.node)["Cast"] - len(around)
    assert casts <= Counter(node.op_type for node in onnx.load(onnx_of(case, name)).graph.node)["Cast"] + 6


@pytest.mark.parametrize(("case", "name"), GRAPHS)
def test_inputs_and_outputs_are_those_of_the_contract_and_caches_half(case, name):
    spec, _ = graph_of(case, name)
    graph = onnx.load(onnx_of(case, name, "fp16")).graph
    wanted = {"FP32": TensorProto.FLOAT, "INT32": TensorProto.INT32, "UINT8": TensorProto.UINT8}
    for values, specs in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
        assert [value.name for value in values] == [tensor.name for tensor in specs]
        for value, tensor in zip(values, specs, strict=True):
            cached = tensor.name.startswith(("PAST_", "CROSS_", "WRITTEN"))
            kind = TensorProto.FLOAT16 if cached else wanted[tensor.dtype]
            assert value.type.tensor_type.elem_type == kind, tensor.name
            varying = {i for i, dim in enumerate(value.type.tensor_type.shape.dim) if not dim.HasField("dim_value")}
            assert varying == set(tensor.dynamic_axes), tensor.name


def test_a_constant_that_fp16_cannot_hold_is_named():
    with pytest.raises(PrecisionError, match="large: 1e\\+20 exceeds the range of fp16"):
        to_half(small_model(1e20), "fp16")
    to_half(small_model(1e20), "bf16")


def test_emulation_rounds_as_numpy_does(tmp_path):
    """One product and one sum: each rounded to fp16, and nothing in between."""
    onnx.save(to_half(small_model(0.1), "fp16"), path := tmp_path / "small.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    half = np.float16(0.1)
    expected = (x.astype(np.float16) * half).astype(np.float16) + half
    np.testing.assert_array_equal(OnnxGraph(path, "fp16")({"X": x})["Y"], expected.astype(np.float32))
    assert not set(types_of(rounded_emulation(onnx.load(path))).values()) - {TensorProto.FLOAT, TensorProto.FLOAT16}


def small_model(constant: float) -> onnx.ModelProto:
    nodes = [helper.make_node("Mul", ["X", "large"], ["P"]), helper.make_node("Add", ["P", "large"], ["Y"])]
    shape = helper.make_tensor_value_info("X", TensorProto.FLOAT, [2, 3])
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [2, 3])
    large = numpy_helper.from_array(np.array(constant, np.float32), "large")
    graph = helper.make_graph(nodes, "small", [shape], [output], [large])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def is_float(tensor: TensorProto) -> bool:
    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
