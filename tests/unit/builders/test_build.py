"""`builders/build.py`: what it refuses, in one line and with nothing touched, and what it leaves when it succeeds.

The torch target stands in for the others: it builds in a moment, and everything around the compiler is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from builders import build as builder
from mplug.tasks.table import open_task

CHECKOUT = Path(__file__).resolve().parents[3]
DATA = CHECKOUT / "tests" / "parity" / "data"
GOLDEN = DATA / "caption"
SERVED_BY_CASE = {
    "caption": {"caption"},
    "vqa": {"vqa"},
    "video": {"caption", "vqa"},
    "grounding": {"ground"},
    "retrieval": {"embed_image", "embed_text", "match"},
}
STAGES = {"vision_encoder", "text_encoder", "fusion_encoder", "text_decoder"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the golden captioner's folder, to be spoilt."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.yaml", "config_bert.json", "vocab.txt", "pytorch_model.bin"):
        shutil.copy(GOLDEN / name, folder / name)
    return folder


def build(checkpoint: Path, output: Path, *arguments: str) -> int:
    return builder.main([str(checkpoint), "--output", str(output), "--target", "torch", *arguments])


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(capsys: pytest.CaptureFixture[str], code: int, *fragments: str) -> None:
    captured = capsys.readouterr()
    assert code == 1
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    for fragment in fragments:
        assert fragment in captured.err


def change_yaml(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = yaml.safe_load((folder / "config.yaml").read_text()) | changes
        document = {key: value for key, value in document.items() if value is not ...}
        (folder / "config.yaml").write_text(yaml.safe_dump(document))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)["model"]
        torch.save(change(state), folder / "pytorch_model.bin")

    return rewrite


def truncate(folder: Path) -> None:
    os.truncate(folder / "pytorch_model.bin", (folder / "pytorch_model.bin").stat().st_size // 2)


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch trace",)


def first_key(state: dict[str, torch.Tensor], ending: str) -> str:
    return next(key for key in state if key.endswith(ending))


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda folder: (folder / "pytorch_model.bin").unlink(), "weights (.safetensors"),
    "a weight missing": (
        change_weights(lambda state: {k: v for k, v in state.items() if not k.endswith("visual.conv1.weight")}),
        "weights are missing for the task image-captioning: vision_encoder.patch_embedding.weight",
    ),
    "a wrong shape": (
        change_weights(lambda state: state | {first_key(state, "visual.conv1.weight"): torch.ones(1)}),
        "vision_encoder.patch_embedding.weight is [1] instead of [128, 3, 16, 16]",
    ),
    "NaN": (
        change_weights(lambda state: state | {(key := first_key(state, "ln_post.bias")): state[key] * float("nan")}),
        "weights are not finite: vision_encoder.norm_out.bias",
    ),
    "truncated weights": (truncate, "pytorch_model.bin: truncated, damaged or not a file of weights"),
    "hostile weights": (
        change_weights(lambda state: {"model": state, "hook": Hostile()}),
        "would have to run posix.system to be read, which is refused",
    ),
    "a vocabulary too short": (
        lambda folder: (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"),
        "vocab.txt has 5 tokens, the model's configuration says 900",
    ),
    "no YAML": (lambda folder: (folder / "config.yaml").unlink(), "a YAML is missing"),
    "two YAMLs": (
        lambda folder: (
            [shutil.copy(folder / "config.yaml", folder / name) for name in ("a.yaml", "b.yaml")]
            + [(folder / "config.yaml").unlink()]
        ),
        "several files could be a YAML: a.yaml, b.yaml",
    ),
    "a YAML without a task": (change_yaml(task=...), "names no task; pass --task with one of"),
    "an unknown task": (change_yaml(task="image-painting"), "unknown task 'image-painting'; known: image-captioning"),
    "no number": (change_yaml(image_res="large"), "config.yaml: image_res is 'large', not a whole number"),
    "a number that cannot be": (change_yaml(beam_size=0), "beam_size is 0, but must be at least 1"),
    "a task that the weights do not serve": (change_yaml(task="visual-question-answering", max_text_length=...), ""),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_checkpoint_is_one_line_and_nothing_is_touched(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / builder.BUILD_INFO).write_text("{}")
    spoil, complaint = SPOILT[what]
    if what == "a task that the weights do not serve":
        change_weights(lambda state: {k: v for k, v in state.items() if "fusion_encoder" not in k})(checkpoint)
        complaint = "weights are missing for the task visual-question-answering: fusion_encoder."
    spoil(checkpoint)
    before = snapshot(tmp_path)
    for output in (tmp_path / "new" / "repository", earlier):
        assert_refused(capsys, build(checkpoint, output), complaint)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--image-size", "0"], "image_size is 0"),
        (["--image-size", "-64"], "image_size is -64"),
        (["--image-size", "8"], "image size 8 is smaller than one patch of 16 pixels"),
        (["--image-size", "1000000"], "image size 1000000 exceeds the limit"),
        (["--precision", "int8"], "PyTorch stages are built in fp32, fp16, bf16, not int8"),
    ],
)
def test_options_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert_refused(capsys, build(GOLDEN, tmp_path / "new", *arguments), complaint)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"precious")
    before = snapshot(tmp_path)
    assert_refused(capsys, build(GOLDEN, photos), f"{photos} exists and was not made by this builder")
    assert_refused(capsys, build(GOLDEN, photos / "holiday.jpg"), "holiday.jpg is not a folder")
    assert_refused(capsys, build(GOLDEN, photos / "holiday.jpg" / "repository"), "holiday.jpg")
    assert_refused(capsys, build(tmp_path / "absent", tmp_path / "new"), "absent: no such folder")
    assert snapshot(tmp_path) == before


def test_stages_that_differ_from_pytorch_are_not_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (0.5, float("nan")):
        monkeypatch.setattr(builder.torch_builder, "compare_graph", lambda *_, wrong=wrong: {"IMAGE_STATES": wrong})
        code = build(GOLDEN, tmp_path / "new")
        captured = capsys.readouterr()
        assert code == 1
        assert captured.err.startswith("error: compiled stages differ from PyTorch") and captured.err.count("\n") == 1
        assert "vision_encoder.IMAGE_STATES" in captured.err
        assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "_write_weights", full)
    with pytest.raises(KeyboardInterrupt):
        build(GOLDEN, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "model.safetensors"))

    monkeypatch.setattr(builder, "_write_weights", full)
    assert_refused(capsys, build(GOLDEN, tmp_path / "new"), "model.safetensors: No space left on device")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- successes


@pytest.mark.parametrize("case", SERVED_BY_CASE)
def test_every_published_case_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    output = tmp_path / "repository"
    assert build(DATA / case, output) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"built {output}" in captured.out
    models = {path.name for path in output.iterdir() if path.is_dir()}
    assert models - STAGES == SERVED_BY_CASE[case]
    for model in models:
        assert (output / model / "config.pbtxt").read_text() == (builder.SOURCE / model / "config.pbtxt").read_text()
        assert (output / model / "1" / "model.py").is_file()
    info = json.loads((output / builder.BUILD_INFO).read_text())
    weights = next(path for path in (DATA / case).iterdir() if path.suffix in (".bin", ".pth"))
    assert info["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (info["target"], info["precision"], info["checkpoint"]) == ("torch", "fp32", case)
    assert set(info["public_models"]) == SERVED_BY_CASE[case]
    assert info["relative_errors"] and all(e <= info["tolerance"] for e in info["relative_errors"].values())
    assert info["versions"]["torch"] == torch.__version__
    assert list(tmp_path.iterdir()) == [output]


def test_a_later_build_replaces_an_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "repository"
    assert build(DATA / "retrieval", output) == 0
    (output / "left_over").mkdir()
    assert build(GOLDEN, output, "--image-size", "96") == 0
    assert {path.name for path in output.iterdir()} == {"caption", "vision_encoder", "text_decoder", builder.BUILD_INFO}
    assert json.loads((output / builder.BUILD_INFO).read_text())["image_size"] == 96
    assert open_task(output / "caption" / "1").config.vision.image_size == 96
    assert list(tmp_path.iterdir()) == [output]


def test_an_unknown_weight_is_a_warning(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_weights(lambda state: state | {"vision_adapter.weight": torch.ones(3)})(checkpoint)
    assert build(checkpoint, tmp_path / "repository") == 0
    errors = capsys.readouterr().err
    assert errors.startswith("warning: ") and errors.count("\n") == 1
    assert "weights that are not used: vision_adapter.weight" in errors


def test_the_authors_folder_with_its_task_named(checkpoint: Path, tmp_path: Path) -> None:
    """The served files know the task that the YAML did not name, so that they can be read without being told."""
    change_yaml(task=..., unheard_of=[1, 2], bert_config="configs/config_bert.json")(checkpoint)
    (checkpoint / "config.yaml").rename(checkpoint / "caption_mplug_base.yaml")
    (checkpoint / "pytorch_model.bin").rename(checkpoint / "mplug_base_coco.pth")
    output = tmp_path / "repository"
    assert build(checkpoint, output, "--task", "image-captioning") == 0
    assert open_task(output / "caption" / "1").config.tasks == ("image-captioning",)
    served = yaml.safe_load((output / "vision_encoder" / "1" / "config.yaml").read_text())
    assert served["tasks"] == ["image-captioning"] and served["unheard_of"] == [1, 2]
    assert "task" not in yaml.safe_load((checkpoint / "caption_mplug_base.yaml").read_text())


def test_as_a_command(checkpoint: Path, tmp_path: Path) -> None:
    """From any folder, with relative paths; exit code and lines as scripts see them."""
    command = [sys.executable, CHECKOUT / "builders" / "build.py", "checkpoint", "--output", "out", "--target", "torch"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("built out; serve it with: python -m mplug.server out\n")
    truncate(checkpoint)
    before = snapshot(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: checkpoint/pytorch_model.bin: ") and done.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before
