"""Real data sets: tiny files in each published layout, written here, become the records that they hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.data.readers import (
    coco,
    easy_vqa,
    flickr30k,
    karpathy,
    msrvtt,
    nlvr2,
    refcoco,
    snli_ve,
    vatex,
    video_qa,
    vqa,
)
from builders.data.readers.records import DatasetError, QuestionRecord, open_picture


def put_image(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 30)).save(path)
    return path


def put_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_easy_vqa(tmp_path):
    image = put_image(tmp_path / "test" / "images" / "7.png")
    questions = (("what is the blue shape?", "circle"), ("is there a red shape?", "no"), ("what color is it?", "blue"))
    rows = [[*each, 7] for each in questions]
    put_json(tmp_path / "test" / "questions.json", rows)
    (tmp_path / "answers.txt").write_text("circle\nblue\nyes\nno\n")
    records = easy_vqa.read("test", tmp_path)
    assert records[1] == QuestionRecord("test-1", image, "is there a red shape?", ("no",), "yes/no")
    assert [record.kind for record in records] == ["shape", "yes/no", "colour"]
    assert easy_vqa.answers(tmp_path) == ["circle", "blue", "yes", "no"]
    with pytest.raises(DatasetError, match="no split 'val'"):
        easy_vqa.read("val", tmp_path)
    put_json(tmp_path / "test" / "questions.json", [*rows, ["is it red?", "no", 8]])
    with pytest.raises(DatasetError, match=r"entry 3: no image 8\.png in"):
        easy_vqa.read("test", tmp_path)
    put_json(tmp_path / "test" / "questions.json", [["is it red?", "no"]])
    with pytest.raises(DatasetError, match="entry 0: is not"):
        easy_vqa.read("test", tmp_path)


def test_easy_vqa_as_its_package_ships_it():
    pytest.importorskip("easy_vqa", reason="the package easy-vqa is not installed")
    assert (len(easy_vqa.read("train")), len(easy_vqa.read("test")), len(easy_vqa.answers())) == (38_575, 9_673, 13)
    fit, chosen_by = (easy_vqa.read(split) for split in ("fit", "validation"))
    assert len(fit) + len(chosen_by) == 38_575 and 0.08 < len(chosen_by) / 38_575 < 0.12
    assert not {record.image for record in fit} & {record.image for record in chosen_by}, "no picture is in both"


def test_weights_of_answers_are_their_shares():
    record = QuestionRecord("1", Path("a.jpg"), "what is it?", ("dog", "dog", "cat", "dog"), weight=0.5)
    assert record.weighted_answers == {"dog": 0.375, "cat": 0.125}


def test_a_picture_is_opened_as_the_server_opens_it(tmp_path):
    assert open_picture(np.zeros((4, 5, 3), np.uint8)).size == (5, 4)
    assert open_picture(put_image(tmp_path / "a.png")).size == (8, 6)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"b\.png"):
        open_picture(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"c\.png: cannot be read"):
        open_picture(tmp_path / "c.png")


def test_karpathys_file_holds_all_splits(tmp_path):
    names = ("000000000042", "000000000007")
    images = {name: put_image(tmp_path / "val2014" / f"COCO_val2014_{name}.jpg") for name in names}
    entries = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{name}.jpg",
            "split": split,
            "sentences": [{"raw": f"A dog {index}."} for index in range(5)],
        }
        for name, split in zip(names, ("test", "restval"), strict=True)
    ]
    path = put_json(tmp_path / "dataset_coco.json", {"images": entries, "dataset": "coco"})
    (record,) = coco.read(path, tmp_path, "test")
    assert (record.key, record.image, len(record.captions)) == ("42", images["000000000042"], 5)
    assert [each.key for each in coco.read(path, tmp_path, "train")] == ["7"]
    with pytest.raises(DatasetError, match="name one of train, val, test"):
        coco.read(path, tmp_path)
    with pytest.raises(DatasetError, match="no pictures of the split val"):
        coco.read(path, tmp_path, "val")
    # The same entries as a list, with the pictures where mPLUG's script has them.
    put_image(tmp_path / "elsewhere" / "val2014_img" / "COCO_val2014_000000000042.jpg")
    listed = put_json(tmp_path / "coco_test.json", entries[:1])
    assert coco.read(listed, tmp_path / "elsewhere")[0].captions == record.captions


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("val2014/COCO_val2014_000000391895.jpg", "391895"),
        ("000000391895.jpg", "391895"),
        ("1007129816.jpg", "1007129816"),
        ("cats_001.jpg", "cats_001"),
        ("holiday_2019_7.png", "holiday_2019_7"),
        ("photo.final.jpg", "photo.final"),
    ],
)
def test_keys_are_the_names_of_pictures(name, key):
    assert karpathy.key_of(Path(name)) == key


def test_captions_of_a_picture_are_gathered(tmp_path):
    put_image(tmp_path / "flickr30k-images" / "1007129816.jpg")
    name = "flickr30k-images/1007129816.jpg"
    train = put_json(tmp_path / "train.json", [{"image": name, "caption": text, "image_id": 3} for text in ("a", "b")])
    test = put_json(tmp_path / "test.json", [{"image": name, "caption": ["a", "b"]}])
    assert flickr30k.read(train, tmp_path) == flickr30k.read(test, tmp_path)
    (record,) = flickr30k.read(test, tmp_path)
    assert (record.key, record.captions) == ("1007129816", ("a", "b"))


def test_vqa_in_the_layout_of_albef(tmp_path):
    put_image(tmp_path / "val2014" / "a.jpg")
    put_image(tmp_path / "genome" / "b.jpg")
    entries = [
        {
            "question_id": 1,
            "image": "val2014/a.jpg",
            "question": "what?",
            "dataset": "vqa",
            "answer": ["dog"] * 7 + ["cat"] * 3,
        },
        {"question_id": 2, "image": "b.jpg", "question": "where?", "dataset": "vg", "answer": "left"},
    ]
    path = put_json(tmp_path / "vqa_train.json", entries)
    first, second = vqa.read(path, tmp_path, other_images={"vg": tmp_path / "genome"})
    assert first.weighted_answers == pytest.approx({"dog": 0.7, "cat": 0.3})
    assert (second.answers, second.weighted_answers) == (("left",), {"left": 0.5})
    with pytest.raises(DatasetError, match="entry 1: is of vg, whose folder"):
        vqa.read(path, tmp_path)
    unanswered = {key: value for key, value in entries[0].items() if key != "answer"}
    blind = put_json(tmp_path / "vqa_test.json", [unanswered])
    assert vqa.read(blind, tmp_path)[0].answers == ()


def test_vqa_as_the_official_files_have_it(tmp_path):
    image = put_image(tmp_path / "val2014" / "COCO_val2014_000000000139.jpg")
    asked = [{"image_id": 139, "question": "Is it?", "question_id": 1390}]
    questions = put_json(tmp_path / "questions.json", {"questions": asked, "data_subtype": "val2014"})
    given = [{"answer": "yes", "answer_id": index, "answer_confidence": "yes"} for index in range(1, 11)]
    answers = [{"question_id": 1390, "image_id": 139, "answer_type": "yes/no", "answers": given}]
    annotations = put_json(tmp_path / "annotations.json", {"annotations": answers, "data_subtype": "val2014"})
    (record,) = vqa.read(annotations, tmp_path, questions=questions)
    assert record == QuestionRecord("1390", image, "Is it?", ("yes",) * 10, "yes/no")
    assert vqa.read(questions, tmp_path, questions=questions)[0].answers == ()
    with pytest.raises(DatasetError, match="that of the questions"):
        vqa.read(annotations, tmp_path)
    empty = put_json(tmp_path / "other.json", {"annotations": [{**answers[0], "question_id": 3}]})
    with pytest.raises(DatasetError, match="question 1390 has no answers"):
        vqa.read(empty, tmp_path, questions=questions)


def test_boxes_of_refcoco_become_corners(tmp_path):
    import torch

    put_image(tmp_path / "COCO_train2014_000000581857.jpg")
    name = "COCO_train2014_000000581857.jpg"
    listed = put_json(tmp_path / "unc_val.json", [{"image": name, "text": "navy shirt", "bbox": [5, 10.5, 20, 40]}])
    torch.save([(name, "mask.mat", [5, 10.5, 20, 40], "navy shirt", [("r1", ["none"])])], tmp_path / "unc_val.pth")
    for path in (listed, tmp_path / "unc_val.pth"):
        (record,) = refcoco.read(path, tmp_path)
        assert (record.expression, record.box) == ("navy shirt", (5.0, 10.5, 25.0, 50.5))
    flat = put_json(tmp_path / "flat.json", [{"image": name, "text": "shirt", "bbox": [5, 10, 0, 40]}])
    with pytest.raises(DatasetError, match="not a box with an area"):
        refcoco.read(flat, tmp_path)
    torch.save([(Path("x"),) * 5], tmp_path / "code.pth")
    with pytest.raises(DatasetError, match="would run code"):
        refcoco.read(tmp_path / "code.pth", tmp_path)


def test_nlvr2(tmp_path):
    pair = [put_image(tmp_path / "dev" / name) for name in ("dev-0-img0.png", "dev-0-img1.png")]
    entry = {"images": ["dev/dev-0-img0.png", "dev/dev-0-img1.png"], "sentence": "Two dogs.", "label": "True"}
    record, other = nlvr2.read(put_json(tmp_path / "nlvr_dev.json", [entry, {**entry, "label": "False"}]), tmp_path)
    assert (list(record.images), record.label, other.label) == (pair, "true", "false")
    for name in ("train-0-img0.png", "train-0-img1.png"):
        put_image(tmp_path / "train" / name)
    numbered = {**entry, "images": ["images/train/72/train-0-img0.png", "images/train/72/train-0-img1.png"]}
    assert len(nlvr2.read(put_json(tmp_path / "nlvr_train.json", [numbered]), tmp_path)) == 1
    with pytest.raises(DatasetError, match="label is 'maybe', not one of True, False"):
        nlvr2.read(put_json(tmp_path / "wrong.json", [{**entry, "label": "maybe"}]), tmp_path)


def test_snli_ve(tmp_path):
    image = put_image(tmp_path / "3416050480.jpg")
    entry = {"image": "3416050480", "sentence": "A man sits.", "label": "neutral"}
    (record,) = snli_ve.read(put_json(tmp_path / "ve_test.json", [entry]), tmp_path)
    assert (record.image, record.hypothesis, record.label) == (image, "A man sits.", "neutral")


@pytest.mark.parametrize("reader", [coco, flickr30k, nlvr2, refcoco, snli_ve, vqa])
def test_what_is_wrong_with_a_file_is_said(reader, tmp_path):
    read = reader.read
    with pytest.raises(DatasetError, match=r"none\.json: cannot be read"):
        read(tmp_path / "none.json", tmp_path)
    (tmp_path / "half.json").write_text("[{")
    with pytest.raises(DatasetError, match=r"half\.json: is not JSON"):
        read(tmp_path / "half.json", tmp_path)
    with pytest.raises(DatasetError, match=r"entry 0: has no '\w+'; its keys: nothing"):
        read(put_json(tmp_path / "keys.json", [{"nothing": 1}]), tmp_path)
    with pytest.raises(DatasetError, match="entry 0: is of type int, not a mapping"):
        read(put_json(tmp_path / "numbers.json", [1]), tmp_path)
    with pytest.raises(DatasetError, match="no such folder of images"):
        read(put_json(tmp_path / "list.json", []), tmp_path / "absent")


def test_pictures_are_looked_for_in_their_folder_alone(tmp_path):
    put_image(tmp_path / "secret.jpg")
    (tmp_path / "images").mkdir()
    path = put_json(tmp_path / "list.json", [{"image": "../secret.jpg", "caption": ["a"]}])
    with pytest.raises(DatasetError, match="leads out of the folder"):
        coco.read(path, tmp_path / "images")


def test_videos_in_their_layouts(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(b"a video")
    lines = tmp_path / "msrvtt_test.jsonl"
    lines.write_text('{"clip_name": "a", "caption": "a dog"}\n\n{"clip_name": "b", "caption": "a cat"}\n')
    first, second = msrvtt.read(lines, tmp_path)
    assert (first.key, first.video, first.captions, first.frames) == ("a", tmp_path / "a.mp4", ("a dog",), 12)
    assert second.captions == ("a cat",)
    listed = put_json(tmp_path / "vatex.json", [{"videoID": "b", "enCap": ["a cat", "one cat"]}])
    assert [(each.key, each.captions, each.frames) for each in vatex.read(listed, tmp_path)] == [
        ("b", ("a cat", "one cat"), 8)
    ]
    asked = tmp_path / "test.jsonl"
    asked.write_text('{"video_id": "a", "question": "what is it", "answer": "dog"}')
    (question,) = video_qa.read(asked, tmp_path)
    assert (question.question, question.answers, question.frames) == ("what is it", ("dog",), 16)
    put_json(tmp_path / "train_ans2label.json", {"dog": 0, "cat": 1})
    assert video_qa.answers(tmp_path / "train_ans2label.json") == ["dog", "cat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"clip_name": "a", "caption": "a dog"}\n{"clip', "line 2: is not JSON"),
        ('{"clip_name": "gone", "caption": "a dog"}', r"line 1: no video gone\.mp4 or gone in"),
        ('{"clip_name": "../a", "caption": "a dog"}', "leads out of the folder of videos"),
        ('{"caption": "a dog"}', "has no 'clip_name'"),
        ("", "holds no videos"),
    ],
)
def test_lines_that_are_wrong_are_named(tmp_path, text, message):
    (tmp_path / "a.mp4").write_bytes(b"a video")
    (tmp_path / "msrvtt_test.jsonl").write_text(text)
    with pytest.raises(DatasetError, match=message):
        msrvtt.read(tmp_path / "msrvtt_test.jsonl", tmp_path)
