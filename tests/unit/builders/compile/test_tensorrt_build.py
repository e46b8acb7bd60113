"""What engines are built for, and the configurations that serve them; no TensorRT is needed here."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from builders.compile.tensorrt import (
    TUNED_BATCHES,
    Compiler,
    EngineOptions,
    Limits,
    Range,
    engine_name,
    input_shapes,
    profiles,
)
from builders.compile.tensorrt_stages import drop_absent_outputs
from mplug.checkpoint import load_checkpoint
from mplug.contract import ENCODERS, decoder_step
from mplug.network.graphs import graphs_of

ROOT = Path(__file__).parents[4]
DATA = ROOT / "tests" / "parity" / "data"
ENTRY = re.compile(r'^(input|output) \{ name: "(\w+)" data_type: TYPE_(\w+) dims: \[ ([-\d, ]+) \] \}$', re.MULTILINE)
BATCH = re.compile(r"^max_batch_size: (\d+)", re.MULTILINE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "cuda"}, "unknown target 'cuda'; known: tensorrt, tensorrt-rtx"),
        ({"precision": "int8"}, "fp16, bf16, fp32, not int8"),
        ({"compute_capabilities": ("9.0",)}, "9.0.*build on the GPU itself with --target tensorrt"),
        ({"target": "tensorrt", "compute_capabilities": ("8.9",)}, "is for --target tensorrt-rtx"),
        ({"hardware_compatible": True}, "are for --target tensorrt"),
        ({"precision": "bf16", "compute_capabilities": ("7.5", "8.6")}, "7.5 computes in fp16 alone"),
    ],
)
def test_options_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**settings)


def test_ranges_are_in_order():
    with pytest.raises(ValueError, match="4 ≤ 2 ≤ 8 does not hold"):
        Range(4, 2, 8)


@pytest.mark.parametrize("case", ["caption", "vqa", "retrieval"])
def test_profiles_name_every_dynamic_input_and_hold_what_is_asked(case):
    network = load_checkpoint(DATA / case)[0]
    for spec, _ in graphs_of(network, 102):
        for ranges in profiles(spec, network, Limits(32, 1000)):
            shapes = input_shapes(spec, network, ranges)
            assert set(shapes) == {tensor.name for tensor in spec.inputs if tensor.dynamic_axes}
            for tensor in spec.inputs:
                for low, usual, high in zip(*shapes.get(tensor.name, ((), (), ())), strict=True):
                    assert 1 <= low <= usual <= high


def test_the_step_has_room_for_many_and_for_long():
    network = load_checkpoint(DATA / "caption")[0]
    spec = decoder_step(network.config.text.text_decode_layers)
    many, few = (
        input_shapes(spec, network, ranges)["PAST_KEY_0"][2] for ranges in profiles(spec, network, Limits(32, 1000))
    )
    assert many[0] == 32 and few[0] == 4 and few[2] == network.config.text.max_positions >= many[2]
    states = [
        input_shapes(spec, network, ranges)["ENCODER_MASK"][2][1]
        for ranges in profiles(spec, network, Limits(32, 1000))
    ]
    assert states[0] >= network.config.vision.tokens and states[1] >= 1000


@pytest.mark.parametrize("case", ["caption", "vqa", "retrieval"])
def test_kernels_are_chosen_for_one_for_eight_and_for_the_largest_batch(case):
    """The first profile, which Triton's own backend takes, still holds every batch."""
    network = load_checkpoint(DATA / case)[0]
    for spec, _ in graphs_of(network, 102):
        plain, tuned = (profiles(spec, network, Limits(32, 1000), batches) for batches in ((), TUNED_BATCHES))
        letter = "S" if "S" in plain[0] else "B"
        if letter not in plain[0]:
            assert tuned == plain  # texts of one request, which are no batch
            continue
        most = plain[0][letter].most
        for_one, for_eight = (Range(1, batch, batch) for batch in (1, 8))
        wanted = [Range(1, most, most), *(ranges[letter] for ranges in plain[1:])]
        wanted += [each for each in (for_one, for_eight) if each.most < most]
        assert [ranges[letter] for ranges in tuned] == wanted
        assert all(ranges | {letter: None} == plain[0] | {letter: None} for ranges in tuned[len(plain) :])


@pytest.mark.parametrize(("target", "asked"), [("tensorrt-rtx", True), ("tensorrt", False)])
def test_an_rtx_engine_allocates_nothing_while_it_runs(monkeypatch, target, asked):
    """Or its stream could not be recorded, in silence. Asked of RTX alone, whose documents say so."""
    flags = []
    config = SimpleNamespace(set_memory_pool_limit=lambda *_: None, set_flag=flags.append)
    package = SimpleNamespace(
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        ProfilingVerbosity=SimpleNamespace(DETAILED=1),
        BuilderFlag=SimpleNamespace(**({"REQUIRE_USER_ALLOCATION": "user"} if asked else {})),
        Builder=lambda logger: SimpleNamespace(create_builder_config=lambda: config),
        ILogger=type("ILogger", (), {}),
    )
    monkeypatch.setattr("builders.compile.tensorrt.load_package", lambda _: package)
    assert Compiler(EngineOptions(target))._configure() is config
    assert flags == (["user"] if asked else [])


@pytest.mark.parametrize("stage", sorted(ENCODERS))
def test_native_configs_say_what_the_contract_says(stage):
    """Names, types and shapes; the batch of the Python config, which the engine is built for; the engine's file."""
    text = (ROOT / "model_repository" / stage / "configs" / "tensorrt.pbtxt").read_text()
    python = (ROOT / "model_repository" / stage / "config.pbtxt").read_text()
    assert BATCH.search(text)[1] == BATCH.search(python)[1]
    assert f'default_model_filename: "{engine_name(stage, "tensorrt")}"' in text
    found = set(ENTRY.findall(text))
    wanted = {
        (kind, tensor.name, tensor.dtype, ", ".join(str(a) if isinstance(a, int) else "-1" for a in tensor.axes[1:]))
        for kind, tensors in (("input", ENCODERS[stage].inputs), ("output", ENCODERS[stage].outputs))
        for tensor in tensors
    }
    assert found == wanted


def test_native_configs_are_read_by_triton():
    """Triton's own schema, where a client that brings it is installed."""
    protocol = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    for path in (ROOT / "model_repository").glob("*/configs/*.pbtxt"):
        config = text_format.Parse(path.read_text(), protocol.ModelConfig())
        assert config.backend == "tensorrt" and config.instance_group[0].kind == protocol.ModelInstanceGroup.KIND_GPU


def test_outputs_without_a_head_are_taken_out(tmp_path):
    """A captioner has no contrastive projection; the native backend would not load with it."""
    source = ROOT / "model_repository" / "vision_encoder" / "configs" / "tensorrt.pbtxt"
    (config := tmp_path / "tensorrt.pbtxt").write_text(source.read_text())
    for case, there in (("retrieval", True), ("caption", False)):
        network = load_checkpoint(DATA / case)[0]
        drop_absent_outputs(config, next(spec for spec, _ in graphs_of(network, 102)))
        assert ("IMAGE_PROJECTION" in config.read_text()) is there
        assert "IMAGE_STATES" in config.read_text()
