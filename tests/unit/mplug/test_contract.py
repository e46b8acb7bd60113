"""Every `config.pbtxt` against what it promises: stages against `mplug.contract`, public models against this table."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from mplug.contract import (
    DYNAMIC,
    ENCODERS,
    MAX_BEAMS,
    NUMPY_TYPES,
    OPTIONAL_OUTPUTS,
    RETRY_INPUT,
    TEXT_DECODER_MODEL,
    TensorSpec,
    decoder_prefill,
    decoder_step,
)

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"
CONFIGS = sorted(REPOSITORY.glob("*/config.pbtxt"))
NAMED_CONFIGS = sorted(REPOSITORY.glob("*/configs/*.pbtxt"))

Tensors = dict[str, tuple[str, list[int]]]
VIDEO: Tensors = {"IMAGE?": ("BYTES", [-1]), "VIDEO?": ("BYTES", [1]), "FRAMES?": ("INT32", [1])}
SEARCH: Tensors = {
    "NUM_BEAMS?": ("INT32", [1]),
    "MIN_LENGTH?": ("INT32", [1]),
    "MAX_LENGTH?": ("INT32", [1]),
    "NUM_RETURN?": ("INT32", [1]),
    "LENGTH_PENALTY?": ("FP32", [1]),
}
#: What clients are promised: inputs and outputs of each public model, optional inputs with a question mark.
PUBLIC: dict[str, tuple[Tensors, Tensors]] = {
    "caption": (
        VIDEO | SEARCH | {"PROMPT?": ("BYTES", [1])},
        {"CAPTION": ("BYTES", [-1]), "SCORE": ("FP32", [-1]), "TOKEN_IDS": ("INT32", [-1, -1])},
    ),
    "vqa": (
        VIDEO
        | SEARCH
        | {"QUESTION": ("BYTES", [1]), "CANDIDATES?": ("BYTES", [-1])}
        | {"OCR?": ("BYTES", [-1]), "OBJECTS?": ("BYTES", [-1])},
        {"ANSWER": ("BYTES", [-1]), "SCORE": ("FP32", [-1]), "TOKEN_IDS": ("INT32", [-1, -1])},
    ),
    "embed_image": (VIDEO, {"FEATURE": ("FP32", [-1])}),
    "embed_text": ({"TEXT": ("BYTES", [1])}, {"FEATURE": ("FP32", [-1])}),
    "match": (
        VIDEO | {"TEXT": ("BYTES", [-1])},
        {"SCORE": ("FP32", [-1]), "SIMILARITY": ("FP32", [-1])},
    ),
    "ground": (
        {"IMAGE": ("BYTES", [1]), "EXPRESSION": ("BYTES", [1])},
        {"BOX": ("FP32", [4]), "BOX_TOKENS": ("INT32", [4])},
    ),
    "nlvr": (
        {"IMAGE": ("BYTES", [2]), "STATEMENT": ("BYTES", [1])},
        {"LABEL": ("BYTES", [1]), "PROBABILITY": ("FP32", [1])},
    ),
    "entail": (
        {"IMAGE": ("BYTES", [1]), "HYPOTHESIS": ("BYTES", [1])},
        {"LABEL": ("BYTES", [1]), "PROBABILITY": ("FP32", [3])},
    ),
}


def read(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def tensors(declared) -> Tensors:
    """Name (with `?` where it is optional) → type by Triton's public name, and dims."""
    types = {"TYPE_STRING": "BYTES"}
    found: Tensors = {}
    for tensor in declared:
        kind = model_config_pb2.DataType.Name(tensor.data_type)
        name = tensor.name + ("?" if getattr(tensor, "optional", False) else "")
        found[name] = (types.get(kind, kind.removeprefix("TYPE_")), list(tensor.dims))
    return found


def of_spec(spec: tuple[TensorSpec, ...]) -> Tensors:
    """A graph's tensors as a batched model declares them: without the batch, −1 where the checkpoint decides."""
    assert all(tensor.axes[0] == "B" for tensor in spec)
    return {
        tensor.name: (tensor.dtype, [axis if isinstance(axis, int) else -1 for axis in tensor.axes[1:]])
        for tensor in spec
    }


def test_every_model_has_a_config_and_a_promise() -> None:
    models = {path.name for path in REPOSITORY.iterdir() if path.is_dir()}
    assert models == {path.parent.name for path in CONFIGS}
    assert models - set(ENCODERS) - {"text_decoder"} <= set(PUBLIC)
    assert {"caption", "text_decoder", *ENCODERS} <= models


@pytest.mark.parametrize("path", CONFIGS + NAMED_CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_configs_are_literal(path: Path) -> None:
    """Nothing is templated: each stands as it is served, whole, and says nothing that the folder says already."""
    config = read(path)
    assert config.name == ""
    assert config.backend
    assert config.input and config.output
    assert not [mark for mark in ("${", "{{", "TODO", "<") if mark in path.read_text()]
    names = [tensor.name for tensor in (*config.input, *config.output)]
    assert len(names) == len(set(names))
    assert all(tensor.dims for tensor in (*config.input, *config.output))
    if config.backend == "python":
        assert (path.parent / "1" / "model.py").is_file()
        assert len((path.parent / "1" / "model.py").read_text().splitlines()) < 150


@pytest.mark.parametrize("stage", ENCODERS)
@pytest.mark.parametrize("path", [path.name for path in NAMED_CONFIGS] + [""])
def test_encoders(stage: str, path: str) -> None:
    file = REPOSITORY / stage / "configs" / path if path else REPOSITORY / stage / "config.pbtxt"
    if not file.exists():
        pytest.skip(f"{stage} has no {path}: its config.pbtxt serves")
    config, spec = read(file), ENCODERS[stage]
    retry = {f"{RETRY_INPUT}?": ("INT32", [1])} if config.backend == "python" and config.response_cache.enable else {}
    assert tensors(config.input) == of_spec(spec.inputs) | retry
    assert tensors(config.output) == of_spec(spec.outputs)
    assert config.max_batch_size > 1 and config.HasField("dynamic_batching")


def test_text_decoder() -> None:
    config = read(REPOSITORY / "text_decoder" / "config.pbtxt")
    assert tensors(config.input) == TEXT_DECODER_MODEL["inputs"]
    assert tensors(config.output) == TEXT_DECODER_MODEL["outputs"]
    # Its own loop batches: neither Triton's batcher nor its cache may stand in between.
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert not config.response_cache.enable
    assert int(config.parameters["max_slots"].string_value) >= 32
    assert int(config.parameters["max_queue"].string_value) > 0


@pytest.mark.parametrize("model", [path.parent.name for path in CONFIGS if path.parent.name in PUBLIC])
def test_public_models(model: str) -> None:
    config = read(REPOSITORY / model / "config.pbtxt")
    inputs, outputs = PUBLIC[model]
    assert tensors(config.input) == inputs
    assert tensors(config.output) == outputs
    assert config.max_batch_size == 0


def test_graphs_name_what_the_network_has() -> None:
    """Heads that only some checkpoints have are outputs of encoders; letters and types are known ones."""
    outputs = {output.name for spec in ENCODERS.values() for output in spec.outputs}
    assert set(OPTIONAL_OUTPUTS) <= outputs
    for spec in (*ENCODERS.values(), decoder_prefill(3), decoder_step(3)):
        names = [*spec.input_names, *spec.output_names]
        assert len(names) == len(set(names))
        for tensor in (*spec.inputs, *spec.outputs):
            assert tensor.dtype in NUMPY_TYPES
            assert set(tensor.dynamic_axes.values()) <= DYNAMIC


def test_the_step_has_caches_for_every_layer() -> None:
    step, prefill = decoder_step(12), decoder_prefill(12)
    for kind in ("PAST_KEY", "PAST_VALUE", "CROSS_KEY", "CROSS_VALUE"):
        assert sum(name.startswith(f"{kind}_") for name in step.input_names) == 12
    assert set(prefill.output_names) <= set(step.input_names)
    # Tokens and scores leave the step, and what it writes: never the caches, never the logits.
    assert step.output_names == [
        "NEXT_TOKENS",
        "NEXT_SCORES",
        "NEXT_ANCESTRY",
        "NEXT_POSITIONS",
        "NEXT_OVER",
        "PARENTS",
        "WRITTEN",
    ]
    assert 5 <= MAX_BEAMS <= 64
