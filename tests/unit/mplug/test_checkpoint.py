"""Weights in every published layout give the same network; what cannot be used is refused in one line, and nothing
in a file of weights is ever run.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from mplug.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, read_state_dict, save_weights
from mplug.config import ConfigError
from mplug.network import MPlug

DATA = Path(__file__).parents[2] / "parity" / "data"
GOLDEN = DATA / "caption"
PATCHES = "visual_encoder.visual.conv1.weight"
POSITIONS = "visual_encoder.visual.positional_embedding"
TASKS_OF_CASES = ("caption", "vqa", "retrieval", "grounding", "video")


@cache
def published(case: str = "caption") -> dict[str, Tensor]:
    """The bare state dict of a golden case, prefixes and infixes as published."""
    file = next(path for path in (DATA / case).iterdir() if path.suffix in (".bin", ".pth"))
    content = torch.load(file, weights_only=True)
    while "model" in content or "module" in content:
        content = content["model" if "model" in content else "module"]
    return content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The golden captioner's folder without its weights."""
    for name in ("config.yaml", "config_bert.json", "vocab.txt"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    return tmp_path


def load_quietly(folder: Path, **options: Any) -> MPlug:
    """Load, with any warning an error: nothing of a published checkpoint may be called unknown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_checkpoint(folder, **options)[0]


@cache
def reference(case: str = "caption") -> dict[str, Tensor]:
    return load_quietly(DATA / case).state_dict()


def assert_same(network: MPlug, tolerance: float = 0.0, case: str = "caption") -> None:
    state = network.state_dict()
    assert state.keys() == reference(case).keys()
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, reference(case)[key], rtol=tolerance, atol=tolerance, msg=key)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_checkpoint(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------- published layouts


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


def without_infix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Text and fusion encoder as some checkpoints name them: without `.bert.` and `.fusion.`."""
    return {
        key.replace("encoder.bert.", "encoder.").replace("encoder.fusion.", "encoder."): tensor
        for key, tensor in state.items()
    }


def with_infix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = without_infix(state)
    return {
        key.replace("text_encoder.", "text_encoder.bert.").replace("fusion_encoder.", "fusion_encoder.fusion."): tensor
        for key, tensor in plain.items()
    }


def with_left_overs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What pre-training leaves in a checkpoint."""
    momentum = {
        f"{stage}_m.{rest}": tensor for key, tensor in state.items() for stage, _, rest in [key.partition(".")] if rest
    }
    extra = {
        "temp": torch.tensor(0.07),
        "image_queue": torch.ones(4, 8),
        "text_queue": torch.ones(4, 8),
        "idx_queue": torch.ones(1, 8),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        "text_encoder.cls.predictions.bias": torch.ones(900),
        "fusion_encoder.cls.predictions.bias": torch.ones(900),
        "text_encoder.bert.embeddings.position_ids": torch.arange(64)[None],
        "visual_encoder.visual.proj": torch.ones(128, 64),
        "visual_encoder.ln_final.weight": torch.ones(64),
        "visual_encoder.transformer.resblocks.0.ln_1.weight": torch.ones(64),
        "text_encoder.bert.encoder.layer.11.attention.self.query.weight": torch.ones(128, 128),
        "text_encoder.bert.pooler.dense.weight": torch.ones(128, 128),
        "text_decoder.cls.predictions.decoder.weight": torch.ones(900, 128),
        "vision_proj_m.weight": torch.ones(48, 128),
        "visn_fc_m.weight": torch.ones(3),
    }
    return {**momentum, **extra, **state}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "under model": lambda state: {"model": state, "epoch": 7, "best": 0.5, "name": "base"},
    "under module": lambda state: {"module": state},
    "under model beside a tensor": lambda state: {"model": state, "temp": torch.ones(1)},
    "under model, under module": lambda state: {"model": {"module": state}},
    "prefixed model.": prefixed("model."),
    "prefixed module.": prefixed("module."),
    "prefixed module.model., under model": lambda state: {"model": prefixed("module.model.")(state)},
    "with infixes": with_infix,
    "without infixes": without_infix,
    "with left-overs of pre-training": with_left_overs,
    "beside an optimiser": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(3)}}, "param_groups": [{"lr": 1e-5}]},
        "lr_scheduler": {"base_values": [1e-5]},
        "config": AUTHORS_CONFIG,
        "epoch": 7,
    },
    "beside arguments and numbers of NumPy": lambda state: {
        "model": state,
        "args": argparse.Namespace(lr=1e-5, output=Path("out")),
        "best": np.float64(137.5),
        "curve": np.arange(3.0),
    },
}
AUTHORS_CONFIG = {"image_res": 384, "optimizer": {"opt": "adamW", "lr1": 1e-5}, "train_file": ["a.json"]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(folder: Path, layout: str) -> None:
    torch.save(LAYOUTS[layout](published()), folder / "pytorch_model.bin")
    assert_same(load_quietly(folder))


@pytest.mark.parametrize("layout", ["with infixes", "without infixes", "with left-overs of pre-training"])
def test_layouts_of_a_checkpoint_with_all_stages(tmp_path: Path, layout: str) -> None:
    for name in ("config.yaml", "config_bert.json", "vocab.txt"):
        shutil.copy(DATA / "vqa" / name, tmp_path / name)
    torch.save(LAYOUTS[layout](published("vqa")), tmp_path / "pytorch_model.bin")
    assert_same(load_quietly(tmp_path), case="vqa")


@pytest.mark.parametrize("case", TASKS_OF_CASES)
def test_nothing_of_a_published_checkpoint_is_called_unknown(case: str) -> None:
    assert all(torch.isfinite(tensor).all() for tensor in reference(case).values())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 0), (torch.float64, 0), (torch.float16, 0), (torch.bfloat16, 4e-3)]
)
def test_stored_precisions(folder: Path, dtype: torch.dtype, tolerance: float) -> None:
    """The golden weights are stored in half precision, so that all but bfloat16 hold them exactly."""
    state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in published().items()}
    torch.save(state, folder / "pytorch_model.bin")
    network = load_quietly(folder)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert_same(network, tolerance)


def test_safetensors(folder: Path) -> None:
    save_file({key: tensor.clone() for key, tensor in published().items()}, folder / "model.safetensors")
    assert_same(load_quietly(folder))


def test_the_format_before_zip_files(folder: Path) -> None:
    torch.save({"model": published()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same(load_quietly(folder))


def test_the_authors_folder(tmp_path: Path) -> None:
    """A `.pth` of any name beside a YAML of any name that says nothing of the task."""
    document = yaml.safe_load((GOLDEN / "config.yaml").read_text())
    del document["task"]
    document |= {"bert_config": "configs/config_bert.json", "unheard_of": {"a": [1, 2]}}
    (tmp_path / "caption_mplug_base.yaml").write_text(yaml.safe_dump(document))
    shutil.copy(GOLDEN / "config_bert.json", tmp_path)
    shutil.copy(GOLDEN / "vocab.txt", tmp_path)
    (tmp_path / "README.md").write_text("# weights")
    torch.save({"model": published(), "epoch": 4}, tmp_path / "mplug_base_coco.pth")
    assert_same(load_quietly(tmp_path, task="image-captioning"))
    assert "names no task; pass --task" in refusal(tmp_path)


def test_our_own_layout(folder: Path) -> None:
    network = load_quietly(GOLDEN)
    save_weights(network, folder / "model.safetensors")
    assert_same(load_quietly(folder))
    wrapped = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    (folder / "model.safetensors").unlink()
    torch.save({"model": wrapped}, folder / "last.pt")
    assert_same(load_quietly(folder))


def test_the_publishers_name_is_meant_among_several(folder: Path) -> None:
    torch.save(published(), folder / "pytorch_model.bin")
    torch.save({"state": {}}, folder / "optimizer.pt")
    assert find_checkpoint(folder).weights.name == "pytorch_model.bin"


def test_the_bert_json_that_the_yaml_names(folder: Path) -> None:
    torch.save(published(), folder / "pytorch_model.bin")
    bert = json.loads((folder / "config_bert.json").read_text())
    (folder / "config_bert_large.json").write_text(json.dumps(bert | {"vocab_size": 1}))
    assert find_checkpoint(folder).bert_config.name == "config_bert.json"
    document = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(document | {"bert_config": "configs/config_bert_large.json"}))
    assert find_checkpoint(folder).bert_config.name == "config_bert_large.json"
    assert "has 900 tokens" in refusal(folder)


def test_positions_of_another_image_size(folder: Path) -> None:
    """The size that is asked for counts, not the one that is stored."""
    torch.save(published(), folder / "pytorch_model.bin")
    document = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(document | {"image_res": 96}))
    by_yaml = load_quietly(folder)
    by_option = load_quietly(GOLDEN, image_size=96)
    assert by_yaml.vision_encoder.position_embedding.shape == (1 + 36, 128)
    for key, tensor in by_option.state_dict().items():
        torch.testing.assert_close(tensor, by_yaml.state_dict()[key], rtol=0, atol=0)


def test_a_vocabulary_with_odd_line_separators(folder: Path) -> None:
    """Some tokens of BERT's vocabularies are characters at which Python's `splitlines` splits."""
    torch.save(published(), folder / "pytorch_model.bin")
    tokens = (folder / "vocab.txt").read_text().splitlines()
    tokens[-1] = "\u2028"
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    load_quietly(folder)


# ------------------------------------------------------------------------------------ warnings and errors


def test_an_unknown_weight_is_named_in_a_warning(folder: Path) -> None:
    torch.save({**published(), "vision_adapter.weight": torch.ones(3)}, folder / "pytorch_model.bin")
    with pytest.warns(UserWarning, match=r"not used: vision_adapter\.weight$"):
        network, _ = load_checkpoint(folder)
    assert_same(network)


def without(key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in published().items() if name != key}


WRONG_WEIGHTS: dict[str, tuple[Callable[[], Any], str]] = {
    "missing": (
        lambda: without(PATCHES),
        "missing for the task image-captioning: vision_encoder.patch_embedding.weight",
    ),
    "of another model": (lambda: {"fc.weight": torch.ones(3)}, "text_decoder.embeddings.norm.weight"),
    "wrong shape": (
        lambda: {**published(), PATCHES: torch.ones(128, 3, 8, 8)},
        "vision_encoder.patch_embedding.weight is [128, 3, 8, 8] instead of [128, 3, 16, 16]",
    ),
    "a number for a matrix": (lambda: {**published(), PATCHES: torch.tensor(1.0)}, "is [] instead of"),
    "NaN": (lambda: {**published(), PATCHES: published()[PATCHES] * float("nan")}, "not finite: vision_encoder.patch"),
    "infinite": (lambda: {**published(), PATCHES: published()[PATCHES] / 0}, "not finite"),
    "whole numbers": (lambda: {**published(), PATCHES: published()[PATCHES].long()}, "not floating-point numbers"),
    "positions of no square": (lambda: {**published(), POSITIONS: torch.ones(12, 128)}, "11 patch positions"),
    "no positions": (lambda: {**published(), POSITIONS: torch.ones(0, 128)}, "is [0, 128] instead of"),
    "flat positions": (lambda: {**published(), POSITIONS: torch.ones(128)}, "is [128] instead of"),
    "a list": (lambda: [1, 2], "holds a list, not a state dict"),
    "a tensor": (lambda: torch.ones(3), "holds a Tensor, not a state dict"),
    "nothing": (dict, "holds no tensors"),
    "no tensors": (lambda: {"model": {"a": 1, "b": "c"}}, "holds no tensors; its keys are a, b"),
}


@pytest.mark.parametrize("what", WRONG_WEIGHTS)
def test_wrong_weights(folder: Path, what: str) -> None:
    make, complaint = WRONG_WEIGHTS[what]
    torch.save(make(), folder / "pytorch_model.bin")
    message = refusal(folder)
    assert message.startswith(f"{folder / 'pytorch_model.bin'}: ")
    assert complaint in message


def test_sizes_that_do_not_fit_the_weights_take_no_memory(folder: Path) -> None:
    """A typing error of some zeros is told; the terabytes that it asks for are not."""
    torch.save(published(), folder / "pytorch_model.bin")
    bert = json.loads((folder / "config_bert.json").read_text())
    (folder / "config_bert.json").write_text(json.dumps(bert | {"intermediate_size": 10**12}))
    assert "instead of [1000000000000" in refusal(folder)


def vocabulary(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tokens = (folder / "vocab.txt").read_text().splitlines()
        (folder / "vocab.txt").write_text("\n".join(change(tokens)) + "\n")

    return write


WRONG_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no YAML": (lambda folder: (folder / "config.yaml").unlink(), "a YAML is missing"),
    "two YAMLs": (
        lambda folder: [(folder / "config.yaml").rename(folder / "a.yaml"), (folder / "b.yml").write_text("a: 1")],
        "several files could be a YAML: a.yaml, b.yml; rename one to config.yaml",
    ),
    "no BERT JSON": (lambda folder: (folder / "config_bert.json").unlink(), "a BERT JSON is missing"),
    "no vocabulary": (lambda folder: (folder / "vocab.txt").unlink(), "vocab.txt is missing"),
    "no weights": (lambda folder: (folder / "pytorch_model.bin").unlink(), "weights (.safetensors, .bin"),
    "two files of weights": (
        lambda folder: [(folder / "pytorch_model.bin").rename(folder / "a.pth"), (folder / "b.pth").touch()],
        "several files could be weights",
    ),
    "a short vocabulary": (vocabulary(lambda tokens: tokens[:-1]), "899 tokens, the model's configuration says 900"),
    "a long vocabulary": (vocabulary(lambda tokens: [*tokens, "more"]), "901 tokens"),
    "a token twice": (vocabulary(lambda tokens: [*tokens[:-1], tokens[700]]), "twice"),
    "no [SEP]": (vocabulary(lambda tokens: [t if t != "[SEP]" else "sep" for t in tokens]), "lacks [SEP]"),
    "a vocabulary that is no text": (lambda folder: (folder / "vocab.txt").write_bytes(b"\xff\xfe" * 900), "not UTF-8"),
}


@pytest.mark.parametrize("what", WRONG_FOLDERS)
def test_wrong_folders(folder: Path, what: str) -> None:
    torch.save(published(), folder / "pytorch_model.bin")
    change, complaint = WRONG_FOLDERS[what]
    change(folder)
    assert complaint in refusal(folder)


def test_no_folder(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "no such folder" in refusal(tmp_path / "file")


# -------------------------------------------------------------------------------------------- damaged files


def files_of_weights(folder: Path) -> dict[str, Path]:
    torch.save(published(), folder / "zip.bin")
    torch.save(published(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file({key: tensor.clone() for key, tensor in published().items()}, folder / "model.safetensors")
    return {"zip": folder / "zip.bin", "legacy": folder / "legacy.pth", "safetensors": folder / "model.safetensors"}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path: Path, kind: str) -> None:
    file = files_of_weights(tmp_path)[kind]
    content = file.read_bytes()
    for kept in (0, 1, 7, 8, 100, len(content) // 3, len(content) - 1000, len(content) - 1):
        file.write_bytes(content[:kept])
        with pytest.raises(CheckpointError) as caught:
            read_state_dict(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    """Flipped bytes are either noticed or lie in the numbers; no reader's own error comes through."""
    file = files_of_weights(tmp_path)[kind]
    content = file.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(content)
        for place in random.integers(0, 4000, 8).tolist():
            damaged[place] = int(random.integers(256))
        file.write_bytes(damaged)
        try:
            read_state_dict(file)
        except CheckpointError as error:
            assert "weights_only" not in str(error)  # torch's advice how to run what is in the file


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(CheckpointError, match="Git LFS pointer, not the weights; run: git lfs pull"):
            read_state_dict(tmp_path / name)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_code_in_a_file_is_not_run(folder: Path, kind: str) -> None:
    trace, file = folder / "trace", folder / "pytorch_model.bin"
    content = {"model": published(), "extra": Hostile(trace)}
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    message = refusal(folder)
    assert not trace.exists()
    assert "would have to run" in message and "refused" in message
    assert ("posix.system" in message) == (kind != "plain pickle")
    # The file is a real one: read without care it does run.
    with open(file, "rb") as stream:
        torch.load(stream, weights_only=False) if kind != "plain pickle" else pickle.load(stream)
    assert trace.exists()


def test_harmless_objects_are_read_as_stand_ins(folder: Path) -> None:
    """Even what is let through is not made: its constructor, however it is called, does nothing."""

    class Swapped:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return np.ndarray, ((10**12,),)  # terabytes, if it were called

    torch.save({"model": published(), "curve": Swapped()}, folder / "pytorch_model.bin")
    assert_same(load_quietly(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_stay_in_their_file_are_the_same(tmp_path: Path, dtype: torch.dtype, zipped: bool) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.png", "*.npz"))
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in published().items()}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    read, mapped = (load_checkpoint(folder, mapped=mapped)[0].state_dict() for mapped in (False, True))
    assert read.keys() == mapped.keys()
    for key, value in read.items():
        assert mapped[key].dtype == torch.float32
        torch.testing.assert_close(mapped[key], value, rtol=0, atol=0)
