"""Real data sets: tiny files in each published layout, written here, become the records that they hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.data.readers import easy_vqa
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
