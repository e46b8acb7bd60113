"""Rehearsals of published checkpoints: keys and shapes are those of the published models at every published
configuration, and a smaller one of each is read, built and answers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from builders import random_checkpoint
from builders.build import build
from builders.published_layout import layout_of
from mplug.config import read_config
from mplug.pipeline import Pipeline

#: Made of the published models by tests/parity/make_layouts.py.
LAYOUTS = json.loads((Path(__file__).parents[2] / "parity" / "data" / "layouts.json").read_text())
PUBLISHED = pytest.mark.parametrize("entry", LAYOUTS, ids=lambda entry: entry["name"])
#: One of those that differ in nothing but data and vocabulary, which a small one has not.
DISTINCT = {
    (e["layout"], e["task"], e["yaml"]["clip_name"], e["bert"]["stride_layer"]): e for e in reversed(LAYOUTS)
}.values()
#: Sizes of a small network in place of the published ones. Layers that run and strides stay.
SMALL_BERT = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 1500,
              "text_decode_layers": 3}  # fmt: skip
SMALL_VISION = {"clip_vision_width": 64, "clip_vision_layers": 1, "clip_transformer_width": 64, "clip_embed_dim": 16,
                "clip_transformer_layers": 1, "clip_vocab_size": 8, "queue_size": 8, "vision_width": 64}  # fmt: skip
TEXTS = {"QUESTION": "what is baba", "EXPRESSION": "the baba", "TEXT": ["a baba", "two dodo"]}


def write_files(entry: dict, folder: Path, *, small: bool) -> Path:
    """The two files of a published configuration, where the YAML names them; returns the YAML."""
    document, bert = dict(entry["yaml"]), dict(entry["bert"])
    if small:
        document |= SMALL_VISION | {"image_res": 4 * (16 if document["clip_name"] == "ViT-B-16" else 14)}
        bert |= SMALL_BERT
    (folder / "configs").mkdir(parents=True)
    path = folder / "configs" / f"{entry['name']}.yaml"
    path.write_text(yaml.safe_dump(document))
    (folder / "configs" / Path(document["bert_config"]).name).write_text(json.dumps(bert))
    return path


@PUBLISHED
def test_keys_and_shapes_are_those_of_the_published_model(entry: dict, tmp_path: Path) -> None:
    path = write_files(entry, tmp_path, small=False)
    task = entry["task"]
    config = read_config(path, random_checkpoint.find_bert_config(path), task=task)
    layout = layout_of(config, entry["yaml"], task, entry["layout"])
    lines = sorted(
        f"{key} torch.{'int64' if array.whole else 'float32'} {list(array.shape)}" for key, array in layout.items()
    )
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == (entry["keys"], entry["sha256"])


@pytest.mark.parametrize("entry", DISTINCT, ids=lambda entry: entry["name"])
@pytest.mark.filterwarnings("error:.*not used")
def test_each_published_configuration_is_made_built_and_answers(entry: dict, tmp_path: Path) -> None:
    path = write_files(entry, tmp_path, small=True)
    arguments = ["--output", str(tmp_path / "checkpoint"), "--layout", entry["layout"], "--seed", "1"]
    assert random_checkpoint.main([str(path), *arguments]) == 0
    # ModelScope's YAML says what it is for; the authors' do not, and the command line does.
    task = entry["task"] if entry["layout"] == "authors" else None
    build(tmp_path / "checkpoint", tmp_path / "repository", target="torch", task=task)
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).save(picture)
    with Pipeline.open(tmp_path / "repository") as pipeline:
        answer = ask(pipeline, entry["task"], picture)
    assert all(np.isfinite(value).all() for value in answer.values() if isinstance(value, np.ndarray))


def ask(pipeline: Pipeline, task: str, picture: Path) -> dict:
    """One answer of the public model of a task."""
    model = next(name for name in ("vqa", "caption", "ground", "match") if name in pipeline.models)
    inputs: dict = {"IMAGE": [picture.read_bytes()]}
    for name in {"vqa": ["QUESTION"], "ground": ["EXPRESSION"], "match": ["TEXT"]}.get(model, []):
        texts = TEXTS[name] if isinstance(TEXTS[name], list) else [TEXTS[name]]
        inputs[name] = [text.encode() for text in texts]
    if task.startswith("video"):
        inputs["IMAGE"] = inputs["IMAGE"] * 3
    return pipeline.submit(model, inputs).result(timeout=60)


def test_a_checkpoint_of_pretraining_serves_every_task(tmp_path: Path) -> None:
    entry = next(entry for entry in LAYOUTS if entry["name"] == "retrieval_coco_mplug_large")
    path = write_files({**entry, "name": "pretrain_mplug_large"}, tmp_path, small=True)
    random_checkpoint.make_checkpoint(path, tmp_path / "checkpoint")
    for task, model in (("image-captioning", "caption"), ("visual-question-answering", "vqa"),
                        ("image-text-retrieval", "match")):  # fmt: skip
        build(tmp_path / "checkpoint", tmp_path / "repository", target="torch", task=task)
        assert (tmp_path / "repository" / model).is_dir()


def test_momentum_copies_and_tied_weights_have_the_values_of_theirs(tmp_path: Path) -> None:
    entry = next(entry for entry in LAYOUTS if entry["name"] == "vqa_mplug_base")
    path = write_files(entry, tmp_path, small=True)
    random_checkpoint.make_checkpoint(path, tmp_path / "checkpoint", half=True)
    state = torch.load(tmp_path / "checkpoint" / "vqa_mplug_base.pth", weights_only=True)["model"]
    embedding = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    assert embedding.dtype == torch.float16 and embedding.std() > 0.01
    for key in ("text_decoder.cls.predictions.decoder.weight", "text_decoder_m.bert.embeddings.word_embeddings.weight"):
        torch.testing.assert_close(state[key], embedding)
    assert (tmp_path / "checkpoint" / path.name).read_bytes() == path.read_bytes()  # as published


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("mine.yaml", "image_res: 32\nbert_config: b.json", "names no task, nor does its file's name"),
        ("mine.yaml", "task: nlvr2", "names the task 'nlvr2'"),
        ("vqa_x.yaml", "image_res: 32", "names no bert_config; pass --bert-config"),
        ("vqa_x.yaml", "bert_config: configs/gone.json", "gone.json is not there; pass --bert-config"),
        ("vqa_x.yaml", "a: [", "cannot be read"),
    ],
)
def test_what_cannot_be_rehearsed_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, document: str, message: str
) -> None:
    (tmp_path / name).write_text(document)
    assert random_checkpoint.main([str(tmp_path / name), "--output", str(tmp_path / "checkpoint")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_with_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_files(LAYOUTS[0], tmp_path, small=True)
    assert random_checkpoint.main([str(path), "--output", str(tmp_path / "configs")]) == 1
    assert "is not empty" in capsys.readouterr().err
