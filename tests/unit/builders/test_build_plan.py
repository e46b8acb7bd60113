"""Several checkpoints in one repository: names, shared stages, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from builders import build as builder
from builders.plan import Checkpoint, PlanError, Source, plan
from mplug.contract import STAGES_FILE
from mplug.runtime.interface import StageInfo

DATA = Path(__file__).resolve().parents[2] / "parity" / "data"
CAPTION, VQA, RETRIEVAL = (DATA / case for case in ("caption", "vqa", "retrieval"))


def variant(source: Path, folder: Path, **changes: object) -> Path:
    """A copy of a golden checkpoint with other lines in its YAML."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.png", "*.npz", "expected.json"))
    document = yaml.safe_load((folder / "config.yaml").read_text()) | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert builder.main([*arguments, "--target", "torch"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


# -------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("argument", "name", "folder"),
    [
        ("path/to/mplug", "", "path/to/mplug"),
        ("large=path/to/mplug", "large", "path/to/mplug"),
        ("b-16_384=a=b", "b-16_384", "a=b"),
    ],
)
def test_names_on_the_command_line(argument: str, name: str, folder: str) -> None:
    source = Source.parse(argument)
    assert (source.name, source.folder) == (name, Path(folder))


def test_a_folder_may_have_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "lr=1e-5").mkdir()
    source = Source.parse(str(tmp_path / "lr=1e-5"))
    assert (source.name, source.folder) == ("", tmp_path / "lr=1e-5")


@pytest.mark.parametrize("argument", ["=x", "a/b=x", "a b=x", "../up=x", "-x=y", "name\n=x"])
def test_names_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str) -> None:
    with pytest.raises(PlanError, match="may hold only letters, digits"):
        Source.parse(argument)
    assert "may hold only letters" in refused(capsys, "--output", str(tmp_path / "new"), "--", "a/b=x")


def test_two_checkpoints_of_one_public_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new"
    for arguments, name in (((CAPTION, CAPTION), "caption"), ((f"a={CAPTION}", f"a={CAPTION}"), "a_caption")):
        message = refused(capsys, *map(str, arguments), "--output", str(output))
        assert f"{name}: served by both {CAPTION} and {CAPTION}" in message and "large_caption" in message
    assert list(tmp_path.iterdir()) == []


def test_options_for_each_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "new")
    for option, value in (("--image-size", "64"), ("--task", "auto")):
        message = refused(capsys, str(CAPTION), str(VQA), f"a={VQA}", "--output", output, option, value, option, value)
        assert f"{option} is given 2 times for 3 checkpoints" in message
    message = refused(capsys, str(CAPTION), str(tmp_path / "absent"), "--output", output)
    assert "absent: no such folder" in message
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- stages


def test_equal_stages_are_built_once_for_all_who_read_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weights with other lengths: the shared decoder takes the longest, and ranks for who asks it to."""
    captions = variant(VQA, tmp_path / "captions", task="image-captioning", max_text_length=12, max_length=7)
    arguments = [str(captions), str(VQA), f"again={VQA}", f"other={CAPTION}", "--output", str(tmp_path / "new")]
    assert builder.main([*arguments, "--target", "torch"]) == 0
    assert capsys.readouterr().err == ""
    served = {path.name for path in (tmp_path / "new").iterdir() if path.is_dir()}
    assert served == {
        "caption",
        "vqa",
        "again_vqa",
        "other_caption",
        "vision_encoder",
        "vision_encoder_2",
        "text_encoder",
        "fusion_encoder",
        "text_decoder",
        "text_decoder_2",
    }
    stages = {
        name: json.loads((tmp_path / "new" / name / "1" / STAGES_FILE).read_text())
        for name in ("caption", "vqa", "again_vqa", "other_caption")
    }
    assert stages["caption"] == {"vision_encoder": "vision_encoder", "text_decoder": "text_decoder"}
    assert (
        stages["vqa"]
        == stages["again_vqa"]
        == {name: name for name in ("vision_encoder", "text_encoder", "fusion_encoder", "text_decoder")}
    )
    assert stages["other_caption"] == {"vision_encoder": "vision_encoder_2", "text_decoder": "text_decoder_2"}
    sizes = StageInfo.read(tmp_path / "new" / "text_decoder" / "1").sizes
    alone = plan([Checkpoint.read(Source(VQA))]).stages[-1]
    assert sizes["ranks_candidates"] == 1 and sizes["max_states"] == alone.max_states
    assert StageInfo.read(tmp_path / "new" / "text_decoder_2" / "1").sizes["ranks_candidates"] == 0

    info = json.loads((tmp_path / "new" / builder.BUILD_INFO).read_text())
    assert [entry["public_models"] for entry in info["checkpoints"]] == [
        ["caption"],
        ["vqa"],
        ["again_vqa"],
        ["other_caption"],
    ]
    assert [entry["reads_stages"] for entry in info["checkpoints"]] == [
        stages[name] for name in ("caption", "vqa", "again_vqa", "other_caption")
    ]
    assert len(set(info["stages"].values())) == len(info["stages"]) == 6
    assert {name.split(".")[0] for name in info["relative_errors"]} == {*info["stages"], "text_decoder_score"}


def test_what_makes_stages_differ(tmp_path: Path) -> None:
    """Weights do, and the sizes that weights do not show; heads behind a stage are part of it."""
    vqa = Checkpoint.read(Source(VQA))
    assert vqa.fingerprint("vision_encoder") != Checkpoint.read(Source(CAPTION)).fingerprint("vision_encoder")
    folder = variant(VQA, tmp_path / "longer", max_length=11, beam_size=2)
    longer = Checkpoint.read(Source(folder))
    assert all(vqa.fingerprint(stage) == longer.fingerprint(stage) for stage in ("vision_encoder", "text_decoder"))
    bert = json.loads((folder / "config_bert.json").read_text())
    (folder / "config_bert.json").write_text(json.dumps(bert | {"layer_norm_eps": 1e-5, "hidden_dropout_prob": 0.3}))
    other = Checkpoint.read(Source(folder))
    assert vqa.fingerprint("text_encoder") != other.fingerprint("text_encoder")
    assert vqa.fingerprint("vision_encoder") == other.fingerprint("vision_encoder")
    larger = Checkpoint.read(Source(VQA, image_size=96))
    assert vqa.fingerprint("vision_encoder") != larger.fingerprint("vision_encoder")
    assert vqa.fingerprint("fusion_encoder") == larger.fingerprint("fusion_encoder")
    shared = plan([vqa, Checkpoint.read(Source(VQA, "large", image_size=96))])
    sizes = {stage.model: stage.config.vision.image_size for stage in shared.stages}
    assert sizes == {
        "vision_encoder": 64,
        "vision_encoder_2": 96,
        "text_encoder": 96,
        "fusion_encoder": 96,
        "text_decoder": 96,
    }
    retrieval = Checkpoint.read(Source(RETRIEVAL))
    assert retrieval.parts("vision_encoder") == ("vision_encoder", "vision_projection")
    assert retrieval.parts("fusion_encoder") == ("fusion_encoder", "match_head")


def test_tasks_and_sizes_of_each(tmp_path: Path) -> None:
    output = tmp_path / "new"
    arguments = [str(CAPTION), str(VQA), "--output", str(output), "--target", "torch"]
    assert (
        builder.main(
            [
                *arguments,
                "--task",
                "auto",
                "--task",
                "visual-question-answering",
                "--image-size",
                "80",
                "--image-size",
                "64",
            ]
        )
        == 0
    )
    info = json.loads((output / builder.BUILD_INFO).read_text())
    assert [entry["image_size"] for entry in info["checkpoints"]] == [80, 64]
    assert builder.main([*arguments, "--image-size", "80"]) == 0
    info = json.loads((output / builder.BUILD_INFO).read_text())
    assert [entry["image_size"] for entry in info["checkpoints"]] == [80, 80]


def test_a_stage_that_is_built_lets_go_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a large model is held once at most: whatever is built later finds the earlier stages without weights."""
    held: list[tuple[str, set[str]]] = []
    build_graph = builder._build_graph

    def noted(job, stage, spec, graph, folder, scratch):
        parameters = stage.network.named_parameters()
        held.append((spec.name, {name.split(".")[0] for name, value in parameters if not value.is_meta}))
        return build_graph(job, stage, spec, graph, folder, scratch)

    monkeypatch.setattr(builder, "_build_graph", noted)
    assert builder.main([str(VQA), "--output", str(tmp_path / "repository"), "--target", "torch"]) == 0
    everything = {"vision_encoder", "text_encoder", "fusion_encoder", "text_decoder"}
    assert held[0] == ("vision_encoder", everything)
    assert held[1] == ("text_encoder", everything - {"vision_encoder"})
    assert held[2] == ("fusion_encoder", {"fusion_encoder", "text_decoder"})
    assert {name: parts for name, parts in held[3:]} == {name: {"text_decoder"} for name, _ in held[3:]}
    assert len(held) == 6
