"""pretrain.py and finetune.py as they are called, on little: what they leave can be loaded, resumed and served."""

from __future__ import annotations

import io
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from training_fixtures import write_vocabulary

from builders.train import finetune, pretrain
from builders.train.checkpoint_folder import start_network
from mplug.checkpoint import CheckpointError, load_checkpoint

PUBLISHED = Path(__file__).parents[3] / "parity/data"
QUICK = ["--batch-size", "3", "--warmup", "1", "--workers", "0", "--validation-batches", "1", "--precision", "fp32"]


def call(command, *arguments: object) -> int:
    kept = sys.argv
    sys.argv = ["command", *map(str, arguments)]
    try:
        return command.main()
    finally:
        sys.argv = kept


@pytest.fixture(scope="module")
def configuration(tmp_path_factory) -> Path:
    """Sizes so small that a step takes milliseconds."""
    folder = tmp_path_factory.mktemp("configuration")
    demo = Path(pretrain.CONFIGS / "demo")
    bert = json.loads((demo / "config_bert.json").read_text())
    bert |= {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "text_encoder_layers": 1,
        "text_decode_layers": 1,
    }
    document = yaml.safe_load((demo / "config.yaml").read_text())
    document |= {"clip_vision_width": 64, "clip_vision_layers": 1, "image_res": 64, "embed_dim": 16}
    (folder / "config_bert.json").write_text(json.dumps(bert))
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture(scope="module")
def pretrained(configuration, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("pretrain")
    options = [*QUICK, "--config", configuration, "--data", "emoji", "--queue-size", "16", "--steps", "2"]
    assert call(pretrain, "--output", output, *options) == 0
    return output


def test_pretraining_leaves_a_checkpoint_and_its_history(pretrained):
    network, _ = load_checkpoint(pretrained / "checkpoint")
    assert {"image-captioning", "image-text-retrieval", "visual-question-answering"} == set(network.config.tasks)
    records = [json.loads(line) for line in (pretrained / "log.jsonl").read_text().splitlines()]
    assert set(records[0]["losses"]) == {"contrast", "matching", "masked language", "prefix language"}
    assert {"text R@1", "image R@1", "texts written exactly"} == set(records[-1]["metrics"])
    assert (pretrained / "training.png").exists()


@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval", "grounding", "nlvr", "entail"])
def test_fine_tuning_for_every_task(task, pretrained, tmp_path, recwarn):
    options = [*QUICK, "--init", pretrained / "checkpoint", "--data", "emoji", "--queue-size", "16", "--steps", "2"]
    assert call(finetune, task, "--output", tmp_path, *options) == 0
    network, _ = load_checkpoint(tmp_path / "checkpoint")
    started, _ = load_checkpoint(pretrained / "checkpoint")
    before, after = (n.vision_encoder.patch_embedding.weight for n in (started, network))
    assert not torch.equal(before, after), "the vision encoder has learnt"
    lacked = {"nlvr": "nlvr_head", "entail": "entail_head"}.get(task)
    told = [str(warning.message) for warning in recwarn if "training starts them from nothing" in str(warning.message)]
    assert bool(told) == bool(lacked) and all(lacked in text for text in told)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[-1]["metrics"]


def test_cider_follows_cross_entropy(pretrained, tmp_path):
    options = [*QUICK, "--init", pretrained / "checkpoint", "--data", "emoji", "--samples", "2", "--cider"]
    assert call(finetune, "caption", "--output", tmp_path, *options, "--steps", "1") == 0
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "self-critical" in records[0]["losses"] and "CIDEr" in records[-1]["metrics"]


@pytest.mark.parametrize(("case", "task"), [("vqa", "vqa"), ("retrieval", "retrieval"), ("caption", "vqa")])
def test_published_weights_are_fine_tuned_by_the_same_command(case, task, tmp_path):
    options = [*QUICK, "--init", PUBLISHED / case, "--data", "emoji", "--queue-size", "16", "--steps", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert call(finetune, task, "--output", tmp_path, *options) == 0
    load_checkpoint(tmp_path / "checkpoint")


def test_published_weights_start_unchanged_at_another_image_size():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network, _ = start_network(PUBLISHED / "vqa", ("visual-question-answering",), image_size=96)
    published, _ = load_checkpoint(PUBLISHED / "vqa", image_size=96)
    for name, tensor in published.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


def test_a_captioner_s_least_length_does_not_forbid_the_answer_yes():
    captioner = Path(__file__).parents[4] / "checkpoints/demo"
    assert load_checkpoint(captioner)[0].config.generation.min_length > 1
    network, _ = start_network(captioner, ("visual-question-answering",))
    assert network.config.generation.min_length == 1


def test_easy_vqa_is_trained_on_and_a_run_goes_on(pretrained, tmp_path):
    options = [
        *QUICK,
        "--init",
        pretrained / "checkpoint",
        "--data",
        "easy-vqa",
        "--split",
        "fit",
        "--validation-split",
        "validation",
        "--validate-every",
        "1",
        "--keep-best",
        "answers right",
        "--output",
        tmp_path,
        "--steps",
        "2",
        "--save-every",
        "1",
        "--alpha",
        "0",
        "--part-words",
    ]
    assert call(finetune, "vqa", *options) == 0
    whole = (tmp_path / "checkpoint/model.safetensors").read_bytes()
    records = (tmp_path / "log.jsonl").read_text()
    assert 0 <= json.loads(records.splitlines()[-1])["metrics"]["answers right"] <= 1
    shutil.rmtree(tmp_path / "states/step-000002")  # as if it had been stopped after the first
    (tmp_path / "checkpoint/model.safetensors").unlink()
    assert call(finetune, "vqa", *options, "--resume") == 0
    assert (tmp_path / "checkpoint/model.safetensors").read_bytes() == whole
    last = [json.loads(text.splitlines()[-1])["metrics"] for text in (records, (tmp_path / "log.jsonl").read_text())]
    assert last[0] == last[1]


def photographs(folder: Path, count: int, torn: tuple[int, ...]) -> list[object]:
    """Options of a small data set of captions, some of whose pictures are cut off in the middle."""
    folder.mkdir()
    entries = []
    for index in range(count):
        stream = io.BytesIO()
        noise = np.random.default_rng(index).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(stream, "JPEG")
        data = stream.getvalue()
        (folder / f"photo_{index}.jpg").write_bytes(data[: len(data) // 2] if index in torn else data)
        entries.append({"image": f"photo_{index}.jpg", "caption": ["a dog", "two red apples"]})
    (folder / "train.json").write_text(json.dumps(entries))
    return ["--data", "coco", "--annotations", folder / "train.json", "--images", folder]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_torn_picture_is_named_and_left_out(workers, pretrained, tmp_path, capfd):
    options = [*QUICK, "--init", pretrained / "checkpoint", "--steps", "4", "--workers", workers]
    data = photographs(tmp_path / "photos", 6, (2,))  # two batches of three: seen in the first or second step
    assert call(finetune, "caption", "--output", tmp_path / "run", *options, *data) == 0
    error = capfd.readouterr().err
    assert error.count("photo_2.jpg") == 1 and "pictures left out because they could not be read: 1" in error
    load_checkpoint(tmp_path / "run/checkpoint")


def test_too_many_torn_pictures_end_a_run(pretrained, tmp_path, capsys):
    options = [*QUICK, "--init", pretrained / "checkpoint", "--steps", "4"]
    data = photographs(tmp_path / "photos", 6, (1, 2, 4))
    assert call(finetune, "caption", "--output", tmp_path / "run", *options, *data) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "2 pictures of 6 records cannot be read, more than --max-unreadable 0.01 allows" in error


def test_an_output_that_is_a_file_is_one_line(pretrained, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    options = [*QUICK, "--init", pretrained / "checkpoint", "--data", "emoji", "--steps", "1"]
    for output, complaint in (("file", "is a file; name a folder"), ("file/run", "Not a directory")):
        assert call(finetune, "vqa", "--output", tmp_path / output, *options) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and complaint in error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        (
            "caption",
            ["--data", "easy-vqa"],
            "--data easy-vqa has nothing for caption; emoji, coco, webdataset, flickr30k have",
        ),
        (
            "caption",
            ["--data", "nlvr2"],
            "--data nlvr2 has nothing for caption; emoji, coco, webdataset, flickr30k have",
        ),
        ("vqa", ["--data", "vqa"], "--data vqa needs --annotations"),
        ("vqa", ["--data", "emoji", "--cider"], "--cider belongs to the task caption"),
        ("vqa", ["--data", "emoji", "--resume"], "start without --resume"),
        ("vqa", ["--data", "emoji", "--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
        ("vqa", ["--data", "emoji", "--batch-size", "0"], "batch_size is 0"),
        ("vqa", ["--data", "easy-vqa", "--keep-best", "answers right"], "needs a --validation-split to choose by"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(task, options, told, pretrained, tmp_path, capsys):
    arguments = ["--init", pretrained / "checkpoint", "--output", tmp_path, "--steps", "1", "--workers", "0"]
    assert call(finetune, task, *arguments, *options) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and told in error


def test_half_a_part_is_refused(pretrained, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in (pretrained / "checkpoint").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["fusion_encoder.layers.0.feed_forward.expand.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"fusion_encoder\.layers\.0"):
        start_network(folder, ("visual-question-answering",))


def test_a_new_network_needs_a_vocabulary(tmp_path, capsys):
    assert call(pretrain, "--data", "coco", "--output", tmp_path, "--steps", "1") == 1
    assert "--vocabulary is needed" in capsys.readouterr().err
    assert call(pretrain, "--config", "huge", "--data", "emoji", "--output", tmp_path, "--steps", "1") == 1
    assert "neither one of base, demo, large nor a folder" in capsys.readouterr().err
    write_vocabulary(tmp_path)
    assert (
        call(pretrain, "--vocabulary", tmp_path / "vocab.txt", "--data", "emoji", "--output", tmp_path, "--steps", "1")
        == 1
    )
    assert "vocab" in capsys.readouterr().err
