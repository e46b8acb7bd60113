"""`builders/reproduce.py`: a rehearsal of each of the paper's tasks on a few pictures or videos in the data set's own
layout, with a tiny random checkpoint; and what is said of data that are not right.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from builders import reproduce
from builders.reproductions import REPRODUCTIONS
from builders.train.checkpoint_folder import write_checkpoint
from mplug.config import TASKS, GenerationConfig, MPlugConfig, TextConfig, VisionConfig
from mplug.network import MPlug

SIZE = 32  # pixels
WORDS = ("red", "green", "blue", "what", "colour", "is", "it", "a", "the", "of", "picture", "yes", "no", "both", "are")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with the parts of every task."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vocabulary = folder / "vocab.txt"
    boxes = [f"[unused{index}]" for index in range(339, 341 + SIZE)]
    vocabulary.write_text("\n".join([*SPECIAL, *WORDS, *boxes]) + "\n")
    text = TextConfig(len(SPECIAL) + len(WORDS) + len(boxes), 32, 64, 2, 64, 2, 1e-12, 0.0, 2, 1, 2, 2, 1)
    config = MPlugConfig(VisionConfig(SIZE, 16, 64, 1), text, GenerationConfig(2, 1, 4), TASKS, 16, 16)
    network = MPlug(config)
    network.initialise(seed=3)
    write_checkpoint(network.eval(), vocabulary, folder / "all")
    return folder / "all"


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((24, 30, 3), (shade, 90, 200 - shade), np.uint8)).save(path)


def video(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(18):
            frame = np.full((32, 32, 3), (shade, 10 * index, 50), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(buffer.getvalue())


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def karpathy(data: Path, name: str, folder: str, file: str) -> None:
    entries = []
    for index in range(1, 5):
        picture(data / folder / file.format(index), 40 * index)
        sentences = [{"raw": f"a {WORDS[each]} picture"} for each in range(3)]
        split = "train" if index > 2 else "test"
        entries.append({"filepath": folder, "filename": file.format(index), "split": split, "sentences": sentences})
    write(data / name, {"images": entries})


def caption(data: Path) -> None:
    karpathy(data, "dataset_coco.json", "val2014", "COCO_val2014_00000000000{}.jpg")


def vqa(data: Path) -> None:
    questions, answers = [], []
    for index in range(1, 4):
        picture(data / "val2014" / f"COCO_val2014_{index:012d}.jpg", 60 * index)
        questions.append({"question_id": index, "image_id": index, "question": "what colour is it?"})
        given = [{"answer": "red"}] * 6 + [{"answer": "blue"}] * 4
        answers.append({"question_id": index, "image_id": index, "answer_type": "other", "answers": given})
        picture(data / "test2015" / f"COCO_test2015_{index:012d}.jpg", 60 * index)
    write(data / "v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": questions})
    write(data / "v2_mscoco_val2014_annotations.json", {"annotations": answers})
    blind = {"data_subtype": "test2015", "questions": questions}
    write(data / "v2_OpenEnded_mscoco_test2015_questions.json", blind)


def retrieval(data: Path) -> None:
    rows = []
    for index in range(3):
        picture(data / "images" / "flickr30k-images" / f"{index}.jpg", 70 * index)
        rows.append({"image": f"flickr30k-images/{index}.jpg", "caption": [f"a {WORDS[index]} picture", "it is red"]})
    write(data / "flickr30k_test.json", rows)


def grounding(data: Path) -> None:
    rows = []
    for index in range(3):
        picture(data / "train2014" / f"{index}.jpg", 70 * index)
        rows.append((f"{index}.jpg", f"{index}.pth", [2.0, 3.0, 10.0, 12.0], "the red picture", None))
    (data / "unc").mkdir(parents=True)
    for split in ("val", "testA", "testB"):
        torch.save(rows, data / "unc" / f"unc_{split}.pth")


def nlvr2(data: Path) -> None:
    for split in ("train", "dev", "test"):
        rows = []
        for index in range(2):
            names = [f"images/{split}/{split}-{index}-img{side}.png" for side in (0, 1)]
            for shade, name in enumerate(names):
                picture(data / name, 80 * shade)
            rows.append({"images": names, "sentence": "both are red", "label": ("True", "False")[index]})
        write(data / f"nlvr_{split}.json", rows)


def snli_ve(data: Path) -> None:
    for split in ("dev", "test"):
        labels = ("entailment", "neutral", "contradiction")
        for index in range(3):
            picture(data / "flickr30k-images" / f"{index}.jpg", 70 * index)
        rows = [{"image": str(index), "sentence": "it is red", "label": label} for index, label in enumerate(labels)]
        write(data / f"ve_{split}.json", rows)


def msrvtt(data: Path) -> None:
    for index in range(3):
        video(data / "videos" / "all" / f"video{index}.mp4", 70 * index)
    rows = [{"clip_name": f"video{index}", "caption": f"a {WORDS[index]} picture"} for index in range(3)]
    write_lines(data / "msrvtt_test.jsonl", rows)


def video_qa(data: Path) -> None:
    for index in range(2):
        video(data / "videos" / f"video{index}.mp4", 70 * index)
    rows = [{"video_id": f"video{index}", "question": "what colour is it", "answer": "red"} for index in range(2)]
    write_lines(data / "txt" / "test.jsonl", rows)
    write(data / "txt" / "train_ans2label.json", {"red": 0, "blue": 1, "yes": 2})


def vatex(data: Path) -> None:
    rows = []
    for index in range(2):
        video(data / f"clip{index}.mp4", 70 * index)
        rows.append({"videoID": f"clip{index}", "enCap": ["a red picture", "it is blue"]})
    write(data / "vatex_public_test_english_v1.1.json", rows)


#: Task → what writes its data, and its splits that are there, in order.
DATA: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "caption": (caption, ["COCO, Karpathy test"]),
    "vqa": (vqa, ["VQA v2, val", "VQA v2, test"]),
    "retrieval": (retrieval, ["Flickr30K, 1K test"]),
    "grounding": (grounding, ["RefCOCO, val", "RefCOCO, testA", "RefCOCO, testB"]),
    "nlvr2": (nlvr2, ["NLVR2, dev", "NLVR2, test-P"]),
    "snli-ve": (snli_ve, ["SNLI-VE, val", "SNLI-VE, test"]),
    "msrvtt": (msrvtt, ["MSRVTT, 1K test, zero-shot"]),
    "msrvtt-qa": (video_qa, ["MSRVTT-QA, test, zero-shot"]),
    "msvd": (video_qa, ["MSVD-QA, test, zero-shot"]),
    "vatex": (vatex, ["VATEX, public test, zero-shot"]),
}


def call(task: str, data: Path, checkpoint: Path, output: Path, *more: str) -> int:
    arguments = [task, "--data", data, "--checkpoint", checkpoint, "--output", output, *more]
    return reproduce.main([str(each) for each in arguments])


def test_every_task_is_rehearsed() -> None:
    assert DATA.keys() == REPRODUCTIONS.keys()


@pytest.mark.parametrize("task", DATA)
def test_our_figure_stands_beside_the_published_one(
    task: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, titles = DATA[task]
    make(tmp_path / "data")
    assert call(task, tmp_path / "data", checkpoint, tmp_path / "output", "--any-size") == 0
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "output" / "reproduction.json").read_text())
    rows = document["rows"]
    assert list(dict.fromkeys(row["split"] for row in rows)) == titles
    published = {split.title: split.figures for split in REPRODUCTIONS[task].splits}
    for row in rows:
        assert tuple(row["published"].values()) == published[row["split"]][row["measure"]]
        for figure in filter(None, row["published"].values()):
            assert f"{figure:g}" in printed
        if row["split"] == "VQA v2, test":  # only the official server has its answers
            assert row["ours"] is None and "blind test" in row["note"]
        else:
            assert math.isfinite(row["ours"]) and f"{row['ours']:.1f}" in printed
    assert len(list((tmp_path / "output" / "predictions").iterdir())) == len(titles)


def test_fine_tuning_comes_first_where_it_is_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    nlvr2(tmp_path / "data")
    more = ("--any-size", "--finetune", "--steps", "1", "--batch-size", "2", "--image-size", "32")
    quick = "--workers 0 --precision fp32 --accumulate 1"
    assert call("nlvr2", tmp_path / "data", checkpoint, tmp_path / "output", *more, "--finetune-arguments", quick) == 0
    document = json.loads((tmp_path / "output" / "reproduction.json").read_text())
    weights = tmp_path / "output" / "finetuned" / "checkpoint" / "model.safetensors"
    assert document["finetuned"] == "yes" and weights.is_file()
    assert document["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_published_schedules_are_whole_steps() -> None:
    for row in REPRODUCTIONS.values():
        for how in row.trainings:
            steps = how.epochs * how.texts * how.items // how.batch
            assert 1_000 < steps < 100_000, how.dataset
            assert reproduce._schedule(steps, how.batch, 8)[:6] == (
                *("--steps", str(steps), "--batch-size", "8", "--accumulate", str(how.batch // 8)),
            )


def test_everything_wrong_is_named_at_once(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nlvr2(tmp_path / "data")
    (tmp_path / "data" / "images" / "dev" / "dev-0-img0.png").unlink()
    torn = tmp_path / "data" / "images" / "test" / "test-1-img1.png"
    torn.write_bytes(torn.read_bytes()[:40])
    (tmp_path / "data" / "nlvr_train.json").unlink()
    assert call("nlvr2", tmp_path / "data", checkpoint, tmp_path / "output", "--finetune") == 1
    error = capsys.readouterr().err
    for expected in (
        "nlvr_dev.json: holds 2 items; the published split (NLVR2, dev) has 6,982",
        "nlvr_test.json: holds 2 items; the published split (NLVR2, test-P) has 6,967",
        "no nlvr_train.json in",
        "dev/dev-0-img0.png: no such file",
        "test/test-1-img1.png",
        "5 problems",
        "nothing was run; --any-size goes on",
    ):
        assert expected in error, error
    assert len((tmp_path / "output" / "problems.txt").read_text().splitlines()) == 5
    assert not (tmp_path / "output" / "reproduction.json").exists()


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("vatex", ("--finetune",), "zero-shot in the paper"),
        ("vqa", ("--finetune", "cider"), "belongs to the task caption"),
        ("caption", (), "no dataset_coco.json or coco_caption_test_ocr.json in"),
        ("msvd", (), "no test.jsonl or txt/test.jsonl in"),
    ],
)
def test_what_cannot_be_reproduced(
    task: str, more: tuple, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    assert call(task, tmp_path / "data", checkpoint, tmp_path / "output", *more) == 1
    assert message in capsys.readouterr().err


def test_a_check_alone_asks_nothing(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retrieval(tmp_path / "data")
    assert call("retrieval", tmp_path / "data", checkpoint, tmp_path / "output", "--any-size", "--check-only") == 0
    streams = capsys.readouterr()
    assert "checked: Flickr30K, 1K test: 3" in streams.err and not streams.out
    assert not (tmp_path / "output").exists()
