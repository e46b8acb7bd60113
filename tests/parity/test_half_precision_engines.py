"""Every graph parses and compiles with TensorRT-RTX, which needs no GPU for that; what the parser made of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from golden import DATA
from half_precision import GRAPHS, graph_of, network_of, onnx_of

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")

from builders.build import main as build
from builders.compile.tensorrt import (
    Compiler,
    EngineError,
    EngineOptions,
    Limits,
    check_report,
    input_shapes,
    profiles,
    write_engine,
)
from builders.compile.tensorrt_stages import export_graph
from mplug.config import read_config
from mplug.network import MPlug
from mplug.network.graphs import graphs_of

LIMITS = Limits(batch=32, states=600)
CHIPS = ("8.6", "8.9", "12.0")
BASE_VARIABLE = "MPLUG_TEST_BASE_SIZE"
#: The fusion encoder's fourth layer is the first that is connected.
FEW_LAYERS = {"vision": 2, "text": 1, "fusion": 4, "decoder": 2}
ALL_LAYERS = {"vision": 12, "text": 6, "fusion": 6, "decoder": 12}
FOR_ADA = ("--target", "tensorrt-rtx", "--compute-capability", "8.9")
ARCHITECTURE = DATA / "caption"


@pytest.fixture(scope="module")
def compilers():
    return {precision: Compiler(EngineOptions("tensorrt-rtx", precision, CHIPS)) for precision in ("fp16", "bf16")}


@pytest.mark.parametrize(("case", "name"), GRAPHS)
def test_the_parsed_network_is_the_contracts_in_half_precision(compilers, case, name):
    """Inputs, outputs, types of products; no loops, no layers whose shapes depend on data."""
    spec, _ = graph_of(case, name)
    _, report = compilers["fp16"].parse(onnx_of(case, name, "fp16"))
    assert list(report.inputs) == spec.input_names and set(report.outputs) == set(spec.output_names)
    for tensor in (*spec.inputs, *spec.outputs):
        kind, shape = (report.inputs | report.outputs)[tensor.name]
        cached = tensor.name.startswith(("PAST_", "CROSS_", "WRITTEN"))
        assert kind == ("HALF" if cached else tensor.dtype.replace("FP32", "FLOAT")), tensor.name
        assert {index for index, length in enumerate(shape) if length < 0} == set(tensor.dynamic_axes), tensor.name
    products = report.layer_types["MATRIX_MULTIPLY"]
    # Casts around each product: half-precision factors, summed in fp32.
    assert products == {"FLOAT": products_of(network_of(case), name)}
    if name != "text_decoder_prefill":
        assert set(report.layer_types["NORMALIZATION"]) == {"HALF"}
    stray = {"LOOP", "RECURRENCE", "ITERATOR", "CONDITION", "NON_ZERO", "SCATTER"}
    assert not stray & {kind.split("_")[0] for kind in report.layer_types} | stray & set(report.layer_types)
    if name == "text_decoder_step":  # log-softmax is written out, and the search is in fp32
        assert set(report.layer_types["TOPK"]) == {"FLOAT"}
        assert report.layer_types["SOFTMAX"] == {"HALF": 4}


def products_of(network: MPlug, name: str) -> int:
    """Matrix products, counted by the network's layers; TensorRT makes one of a Gemm as well."""
    text, vision = network.config.text, network.config.vision
    head = {"vision_encoder": "vision_projection", "text_encoder": "text_projection", "fusion_encoder": "match_head"}
    heads = int(hasattr(network, head.get(name, "none")))
    if name == "vision_encoder":
        return 6 * vision.layers + heads + network.config.projects_vision
    if name == "text_encoder":
        return 8 * text.text_encoder_layers + heads
    if name == "fusion_encoder":
        crossing = sum(layer.cross_attention is not None for layer in network.fusion_encoder.layers)
        return 8 * text.fusion_layers + 6 * crossing + heads
    if name == "text_decoder_prefill":
        return 2 * text.text_decode_layers
    return 12 * text.text_decode_layers + 2  # keys and values of the encoder's states come from the prefill


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("case", "name"), GRAPHS)
def test_every_graph_compiles(compilers, tmp_path, case, name, precision):
    spec, _ = graph_of(case, name)
    information = write_engine(
        compilers[precision], onnx_of(case, name, precision), spec, network_of(case), LIMITS, tmp_path
    )
    engine = tmp_path / f"{name}.tensorrt-rtx.plan"
    assert engine.stat().st_size == information["engine_bytes"] > 100_000
    written = json.loads(engine.with_suffix(".json").read_text())
    assert (written["precision"], written["compute_capabilities"]) == (precision, list(CHIPS))
    assert len(written["shapes"]) == (2 if name == "text_decoder_step" else 1)


def test_a_repository_is_built_from_a_checkpoint(tmp_path, capsys):
    """The command, from published weights to engines; what it says it measured."""
    output = tmp_path / "repository"
    assert build([str(DATA / "caption"), "--output", str(output), *FOR_ADA]) == 0, capsys.readouterr().err
    information = json.loads((output / "build_info.json").read_text())
    assert (information["target"], information["precision"]) == ("tensorrt-rtx", "fp16")
    assert {engine["graph"] for engine in information["engines"]} == {
        "vision_encoder",
        "text_decoder_prefill",
        "text_decoder_step",
    }
    assert set(information["relative_errors"]) == {"vision_encoder.IMAGE_STATES", "text_decoder.LOG_PROBABILITIES"}
    assert (output / "text_decoder/1/text_decoder_step.tensorrt-rtx.plan").exists()
    assert not (output / "vision_encoder/configs/tensorrt.pbtxt").exists()  # these engines are not for that backend


def test_wrong_graphs_and_shapes_are_refused_in_words(compilers, tmp_path):
    spec, _ = graph_of("caption", "text_decoder_step")
    path = onnx_of("caption", "text_decoder_step", "fp16")
    (broken := tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"broken.onnx: TensorRT cannot parse it"):
        compilers["fp16"].parse(broken)
    _, report = compilers["fp16"].parse(path)
    shapes = input_shapes(spec, network_of("caption"), profiles(spec, network_of("caption"), LIMITS)[0])
    check_report(report, spec, shapes)
    wider = shapes | {"POSITIONS": ((1,), (8,), (64,))}
    with pytest.raises(EngineError, match="disagree about the lengths of axes S"):
        check_report(report, spec, wider)
    with pytest.raises(EngineError, match="no shapes are given for POSITIONS"):
        check_report(report, spec, {name: value for name, value in shapes.items() if name != "POSITIONS"})
    looping = replace(report, layer_types=report.layer_types | {"LOOP_OUTPUT": {"HALF": 1}})
    with pytest.raises(EngineError, match="layers of type LOOP_OUTPUT"):
        check_report(looping, spec, shapes)


@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(FEW_LAYERS, id="few layers"),
        pytest.param(
            ALL_LAYERS,
            id="all layers",
            marks=pytest.mark.skipif(
                not os.environ.get(BASE_VARIABLE), reason=f"takes minutes and 6 GB: set {BASE_VARIABLE}=1"
            ),
        ),
    ],
)
def test_a_checkpoint_of_base_size_compiles(tmp_path, depth):
    """Random weights in the sizes of the published base checkpoint, at 384 pixels; its layers are all alike."""
    config = read_config(ARCHITECTURE / "config.yaml", ARCHITECTURE / "config_bert.json")
    vision = replace(config.vision, image_size=384, patch_size=16, width=768, layers=depth["vision"])
    text = replace(
        config.text,
        vocab_size=30522,
        hidden_size=768,
        intermediate_size=3072,
        heads=12,
        max_positions=512,
        num_hidden_layers=depth["fusion"],
        text_encoder_layers=depth["text"],
        fusion_layers=depth["fusion"],
        stride_layer=3,
        text_decode_layers=depth["decoder"],
    )
    parts = ("vision_encoder", "text_encoder", "fusion_encoder", "text_decoder")
    network = MPlug(replace(config, vision=vision, text=text), parts=parts).eval()
    network.initialise()
    compiler = Compiler(EngineOptions("tensorrt-rtx", "fp16", ("8.9",)))
    for spec, graph in graphs_of(network, 102):
        path = tmp_path / f"{spec.name}.onnx"
        export_graph(spec, graph, network, path, compiler.options)
        information = write_engine(compiler, path, spec, network, Limits(32, 16 * vision.tokens), tmp_path)
        print(f"{spec.name}: {information['engine_bytes'] >> 20} MB in {information['seconds']} s")
        assert information["engine_bytes"] > path.stat().st_size
        written = json.loads((tmp_path / f"{spec.name}.tensorrt-rtx.json").read_text())["network"]
        products = written["layer_types"]["MATRIX_MULTIPLY"]
        assert products == {"FLOAT": products_of(network, spec.name)}
        assert list(written["inputs"]) == spec.input_names and set(written["outputs"]) == set(spec.output_names)
        path.unlink()


def test_the_demo_checkpoint_compiles(tmp_path):
    demo = Path(__file__).parents[2] / "checkpoints" / "demo"
    if not (demo / "config.yaml").exists():
        pytest.skip("checkpoints/demo is not here")
    assert build([str(demo), "--output", str(tmp_path / "demo"), *FOR_ADA]) == 0
