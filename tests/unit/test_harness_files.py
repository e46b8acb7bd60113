"""The files that others' harnesses are given hold together: functions, pictures and captions exist and agree."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HARNESSES = ROOT / "examples" / "harnesses"
TASKS = sorted((HARNESSES / "lmms_eval").glob("*.yaml"))


class TaskLoader(yaml.SafeLoader):
    """YAML as lmms-eval reads it: `!function module.name` is a function of a file beside the task."""


TaskLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def function(name: str) -> Any:
    module, _, attribute = name.partition(".")
    spec = importlib.util.spec_from_file_location(module, HARNESSES / "lmms_eval" / f"{module}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, attribute)


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_of_lmms_eval_asks_what_it_says(path: Path) -> None:
    task = yaml.load(path.read_text(), TaskLoader)
    assert task["task"] == path.stem
    data = rows(ROOT / task["dataset_kwargs"]["data_files"][task["test_split"]])
    assert len(data) == 12
    for row in data:
        (picture,) = function(task["doc_to_visual"])(row)
        assert picture.mode == "RGB" and picture.size == (256, 256)
        text = function(task["doc_to_text"])(row)
        assert text == (row["question"] if path.stem.endswith("vqa") else "")
        assert row[task["doc_to_target"]]


def test_captions_are_those_of_the_examples() -> None:
    true = dict(
        re.findall(r"^\| \[(\S+)\][^|]*\|[^|]*\| ([^|]+) \|", (ROOT / "examples" / "README.md").read_text(), re.M)
    )
    for row in rows(HARNESSES / "lmms_eval" / "scenes.jsonl"):
        assert true[row["picture"]] == row["caption"]


def test_pictures_of_aiperf_exist() -> None:
    asked = rows(HARNESSES / "aiperf.jsonl")
    assert len(asked) == 8
    assert all((ROOT / row["image"]).is_file() and row["text"].endswith("?") for row in asked)
