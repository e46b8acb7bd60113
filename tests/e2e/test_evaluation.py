"""The evaluation gives the same answers and figures through PyTorch and through a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders import evaluate
from builders.data.readers import easy_vqa
from builders.evaluation import caption_metrics
from demo import records as emoji
from mplug.server.command import TritonServer

ITEMS = 5


@pytest.fixture(scope="module")
def results(
    every_task: Path, every_task_server: TritonServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder of results per road: `scores.json` and the predictions of every task."""
    folder = tmp_path_factory.mktemp("evaluation")
    roads = {"server": ["--url", every_task_server.grpc_url], "pytorch": ["--checkpoint", str(every_task)]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_metrics.shutil, "which", lambda _: None)  # Java takes long to start
        for name, road in roads.items():
            output = folder / name
            options = ["--items", str(ITEMS), "--split", "test", "--failures", "2"]
            files = ["--output", str(output / "scores.json"), "--markdown", str(output / "card.md")]
            assert evaluate.main([*road, *options, *files, "--save-predictions", str(output / "predictions")]) == 0
    return {name: folder / name for name in roads}


def test_every_task_is_in_the_table(results: dict[str, Path]) -> None:
    outcomes = json.loads((results["server"] / "scores.json").read_text())["outcomes"]
    assert [outcome["task"] for outcome in outcomes] == list(emoji.RECORDS) == list(evaluate.SCORERS)
    assert all(1 <= outcome["items"] <= ITEMS for outcome in outcomes)
    card = (results["server"] / "card.md").read_text()
    for measure in ("object recall", "exact", "CIDEr", "accuracy, entailment", "IoU ≥ 0.5", "text → image, R@1"):
        assert f"| {measure} |" in card
    assert "METEOR: not computed: no Java runtime" in card


@pytest.mark.parametrize("task", evaluate.SCORERS)
def test_answers_are_the_same_through_either(results: dict[str, Path], task: str) -> None:
    found = []
    for folder in results.values():
        (path,) = (folder / "predictions").glob(f"{task}-*.json")
        found.append(json.loads(path.read_text()))
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, abs=1e-3) if name == "box" else value)


def test_figures_are_the_same_through_either(results: dict[str, Path]) -> None:
    server, pytorch = (json.loads((folder / "scores.json").read_text()) for folder in results.values())
    assert (server["through"], pytorch["through"]) == ("a server over grpc", "PyTorch, fp32")
    for one, other in zip(server["outcomes"], pytorch["outcomes"], strict=True):
        numbers = [
            {name: value for name, value in outcome["metrics"].items() if not isinstance(value, str)}
            for outcome in (one, other)
        ]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)
        assert one["first_mistakes"] == other["first_mistakes"] or one["task"] == "grounding"


def test_given_answers_are_ranked(every_task_server: TritonServer, tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa", reason="the package easy-vqa is not installed")
    options = ["--url", every_task_server.grpc_url, "--data", "easy-vqa", "--rank", "--items", "4"]
    assert evaluate.main([*options, "--save-predictions", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("vqa-*.json")
    answers = {entry["answer"] for entry in json.loads(path.read_text())}
    assert answers and answers <= set(easy_vqa.answers())


def test_a_task_that_is_not_served_is_told(caption_server: TritonServer, capsys) -> None:
    assert evaluate.main(["--url", caption_server.grpc_url, "--items", "2", "--task", "grounding"]) == 1
    assert "grounding: the model ground is not served" in capsys.readouterr().err
