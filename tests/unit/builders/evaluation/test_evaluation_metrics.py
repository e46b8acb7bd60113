"""Metrics of the evaluation, against numbers computed by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from builders import evaluate
from builders.data.readers.records import DatasetError
from builders.evaluation import caption_metrics, vqa_accuracy
from builders.evaluation.boxes import iou
from builders.evaluation.predictions import score_file
from builders.evaluation.retrieval_ranks import ranks, recalls, shortlist
from builders.evaluation.vqa_accuracy import accuracy, normalised


@pytest.mark.parametrize(
    ("same", "wanted"),
    [
        (0, 0.0),
        (1, 0.3),  # 9 of 10 subsets hold it once: 9 × 1/3 / 10
        (2, 0.6),  # 8 hold it twice, 2 once: (8 × 2/3 + 2 × 1/3) / 10
        (3, 0.9),  # 7 hold it three times, 3 twice: (7 + 3 × 2/3) / 10
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_vqa_accuracy_leaves_one_person_out(same, wanted):
    assert accuracy("dog", ["dog"] * same + [f"other {n}" for n in range(10 - same)]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The Dog!", "dog"),
        ("two dogs, a cat", "2 dogs cat"),
        ("red/blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("U.S.", "us"),
        ("dont know", "don't know"),
        ("shouldntve", "shouldntve"),
        ("couldn'tve", "couldn't've"),
        ("None of the ten", "0 of 10"),
    ],
)
def test_answers_are_made_alike(answer, wanted):
    assert normalised(answer) == wanted


def test_answers_that_all_gave_alike_are_compared_as_they_stand():
    """As in the official program, which makes answers alike only where people disagree."""
    assert accuracy("The Dog", ["dog"] * 10) == 0.0
    assert accuracy("The Dog", ["dog"] * 9 + ["cat"]) == 1.0
    assert accuracy("dog\n", [" dog"] * 10) == 1.0


def test_vqa_score_means_over_kinds_and_single_truths():
    given = ["yes"] * 5 + ["no"] * 5
    score = vqa_accuracy.score([("yes", given, "yes/no"), ("maybe", given, "yes/no"), ("Two", ["2"], "number")])
    assert score.overall == pytest.approx(2 / 3)
    assert score.by_kind == pytest.approx({"yes/no": 0.5, "number": 1.0})
    with pytest.raises(ValueError, match="no answers"):
        accuracy("yes", [])


def test_overlap_of_boxes():
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert iou((2, 2, 4, 4), (0, 0, 10, 10)) == pytest.approx(0.04)
    several = iou([[0, 0, 10, 10], [0, 0, 4, 4]], [[5, 0, 15, 10], [6, 6, 8, 8]])
    assert several.tolist() == pytest.approx([1 / 3, 0])


def test_ranks_of_a_shortlist_come_before_all_else():
    similar = np.array([[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])
    assert shortlist(similar, 2).tolist() == [[0, 1], [3, 2]]
    scores = np.array([[-5.0, 7.0, np.nan, np.nan], [np.nan, np.nan, 1.0, -1.0]])
    # Query 0 ranks 1, 0, 2, 3; query 1 ranks 2, 3, 1, 0.
    assert [ranks(similar, scores, [{item}, {item}]).tolist() for item in range(4)] == [[1, 3], [0, 2], [2, 0], [3, 1]]
    assert ranks(similar, scores, [{0, 3}, {0, 1}]).tolist() == [1, 2]  # the best of several right ones counts
    assert recalls(np.array([0, 4, 5, 9, 10])) == {1: 0.2, 5: 0.4, 10: 0.8}
    with pytest.raises(ValueError, match="query 1"):
        ranks(similar, scores, [{0}, set()])


def test_captions_without_java(monkeypatch):
    monkeypatch.setattr(caption_metrics.shutil, "which", lambda _: None)
    references = {"1": ["a red dog above a cat", "A dog."], "2": ["two apples on the left"]}
    perfect = caption_metrics.score(references, {"1": "a red dog above a cat", "2": "Two apples, on the left!"})
    assert perfect.values["BLEU-4"] == pytest.approx(1.0, abs=1e-6) and perfect.values["ROUGE-L"] == 1.0
    # Tf-idf of both is a perfect match for a single reference: CIDEr's scale is 10, halved where one of two fits.
    assert 5 < perfect.values["CIDEr"] <= 10
    assert perfect.values["METEOR"] == perfect.values["SPICE"] == caption_metrics.NO_JAVA
    half = caption_metrics.score(references, {"1": "a red dog above a cat", "2": "two pears"})
    # One word of two is right: clipped unigram precision (6 + 1) / (6 + 2), and a penalty for 8 words against 6 + 5.
    brevity = math.exp(1 - 11 / 8)
    assert half.values["BLEU-1"] == pytest.approx(7 / 8 * brevity, abs=1e-6)


def test_captions_must_be_those_of_the_references():
    for captions, complaint in (({"1": "a"}, "no caption for 2"), ({"1": "a", "2": "b", "3": "c"}, "references for 3")):
        with pytest.raises(ValueError, match=complaint):
            caption_metrics.score({"1": ["a"], "2": ["b"]}, captions)


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR and the Penn Treebank tokeniser are Java programs")
def test_captions_with_java():
    references = {"1": ["A dog's bowl, on the mat."], "2": ["two red apples"], "3": ["a wolf"]}
    score = caption_metrics.score(references, {"1": "A dog's bowl, on the mat.", "2": "two apples", "3": ""})
    assert score.tokeniser == "Penn Treebank"
    assert 0.3 < score.values["METEOR"] < 0.8
    assert isinstance(score.values["SPICE"], float) or score.values["SPICE"].startswith("not computed: ")


def put(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_file_of_answers_is_scored(tmp_path, capsys):
    given = [{"answer": answer, "answer_id": n} for n, answer in enumerate(["red"] * 3 + ["blue"] * 7)]
    references = put(
        tmp_path / "annotations.json",
        {
            "annotations": [
                {"question_id": 1, "answers": given, "answer_type": "other"},
                {"question_id": 2, "answers": given, "answer_type": "number"},
            ]
        },
    )
    predictions = put(
        tmp_path / "answers.json",
        [
            {"question_id": 1, "answer": "red"},
            {"question_id": 2, "answer": "The blue."},
        ],
    )
    output, table = tmp_path / "scores.json", tmp_path / "scores.md"
    command = ["--data", "vqa", "--predictions", str(predictions), "--annotations", str(references)]
    assert evaluate.main([*command, "--output", str(output), "--markdown", str(table)]) == 0
    assert "95.0" in capsys.readouterr().out
    (outcome,) = json.loads(output.read_text())["outcomes"]
    assert outcome["metrics"] == pytest.approx(
        {"accuracy": 0.95, "accuracy, other": 0.9, "accuracy, number": 1.0}, abs=1e-9
    )
    assert "| vqa | accuracy | 95.0 |" in table.read_text()
    short = put(tmp_path / "short.json", [{"question_id": 1, "answer": "red"}])
    with pytest.raises(DatasetError, match=r"nothing for question_id 2 \(1 such of 2\); --subset scores"):
        score_file("vqa", short, references, None)
    assert score_file("vqa", short, references, None, subset=True).metrics["accuracy"] == pytest.approx(0.9)
    strange = put(tmp_path / "strange.json", [{"question_id": 3, "answer": "red"}])
    with pytest.raises(DatasetError, match="question_id 3 is not in"):
        score_file("vqa", strange, references, None, subset=True)
    twice = put(tmp_path / "twice.json", [{"question_id": 1, "answer": "red"}] * 2)
    with pytest.raises(DatasetError, match="question_id 1 has been answered before"):
        score_file("vqa", twice, references, None, subset=True)


def test_a_file_of_captions_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_metrics.shutil, "which", lambda _: None)
    references = put(
        tmp_path / "gt.json",
        {
            "images": [{"id": 42}, {"id": 7}],
            "annotations": [
                {"image_id": 42, "caption": "a dog on a mat"},
                {"image_id": 42, "caption": "a dog"},
                {"image_id": 7, "caption": "two red apples on a table"},
            ],
        },
    )
    karpathy = put(
        tmp_path / "karpathy.json",
        [
            {"image": "val2014/COCO_val2014_000000000042.jpg", "caption": ["a dog on a mat", "a dog"]},
            {"image": "val2014/COCO_val2014_000000000007.jpg", "caption": ["two red apples on a table"]},
        ],
    )
    predictions = put(
        tmp_path / "captions.json",
        [
            {"image_id": 42, "caption": "a dog on a mat"},
            {"image_id": 7, "caption": "two red apples on a table"},
        ],
    )
    for path in (references, karpathy):
        outcome = score_file("coco", predictions, path, None)
        assert (outcome.items, outcome.mistakes) == (2, [])
        assert outcome.metrics["BLEU-4"] == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(DatasetError, match=r"captions\.json: nothing for image_id 9"):
        score_file(
            "coco",
            predictions,
            put(
                tmp_path / "more.json",
                {
                    "images": [{"id": 42}, {"id": 7}, {"id": 9}],
                    "annotations": [{"image_id": key, "caption": "a"} for key in (42, 7, 9)],
                },
            ),
            None,
        )


def test_pictures_whose_names_end_in_one_number_are_two(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_metrics.shutil, "which", lambda _: None)
    names, texts = ("cats_001.jpg", "dogs_001.jpg"), ("two cats on a mat", "a dog beside a wall")
    references = put(
        tmp_path / "test.json",
        [{"image": name, "caption": [text]} for name, text in zip(names, texts, strict=True)],
    )
    for answers, exact in ((texts, 2), (texts[::-1], 0)):
        predictions = put(
            tmp_path / "captions.json",
            [{"image_id": name[:-4], "caption": text} for name, text in zip(names, answers, strict=True)],
        )
        outcome = score_file("coco", predictions, references, None)
        assert (outcome.items, outcome.items - len(outcome.mistakes)) == (2, exact)
    clash = put(tmp_path / "clash.json", [{"image": f"{place}/001.jpg", "caption": ["a"]} for place in "ab"])
    with pytest.raises(DatasetError, match=r"two entries have the key '1' \(a/001.jpg and b/001.jpg\)"):
        score_file("coco", predictions, clash, None)
    again = put(
        tmp_path / "again.json",
        {"annotations": [{"question_id": 1, "answers": [{"answer": answer}]} for answer in ("yes", "no")]},
    )
    with pytest.raises(DatasetError, match=r"again\.json: two entries have the key '1'"):
        score_file("vqa", put(tmp_path / "one.json", [{"question_id": 1, "answer": "yes"}]), again, None)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--data", "coco"], "needs --annotations and --images"),
        (["--data", "vqa", "--task", "nlvr"], "--data vqa is for vqa, not for nlvr"),
        (["--split", "mars"], "'mars' is none of"),
        (["--data", "coco", "--rank", "--task", "caption"], "needs --annotations and --images"),
        (["--data", "easy-vqa", "--split", "val"], "easy-vqa has no split 'val'"),
        (["--checkpoint", "nowhere", "--items", "2"], "nowhere: no such folder"),
        (["--url", "localhost:1", "--items", "2"], "does not answer"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(options, complaint, capsys):
    assert evaluate.main(options) == 1
    error = capsys.readouterr().err
    assert complaint in error and "Traceback" not in error
