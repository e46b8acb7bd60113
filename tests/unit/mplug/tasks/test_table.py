"""The table of public models, held against what it speaks of."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from mplug.config import TASKS
from mplug.errors import NotServed
from mplug.network.mplug import PARTS_OF_TASK
from mplug.tasks.table import PUBLIC_MODELS, open_task, public_model, served_by

REPOSITORY = Path(__file__).resolve().parents[4] / "model_repository"


def test_every_public_model_stands_in_the_model_repository() -> None:
    folders = {path.name for path in REPOSITORY.iterdir() if path.is_dir()}
    assert folders == {*PUBLIC_MODELS, "vision_encoder", "text_encoder", "fusion_encoder", "text_decoder"}


@pytest.mark.parametrize("model", PUBLIC_MODELS.values(), ids=PUBLIC_MODELS)
def test_every_implementation_is_there(model) -> None:
    module, name = model.implementation.split(":")
    task = getattr(importlib.import_module(module), name)
    assert callable(task.parse) and callable(task.run)


def test_every_task_of_a_checkpoint_serves_something_and_no_other_does() -> None:
    assert {task for model in PUBLIC_MODELS.values() for task in model.checkpoint_tasks} == set(TASKS)
    assert set(PARTS_OF_TASK) == set(TASKS)


def test_heads_are_parts_of_the_network_for_their_tasks() -> None:
    for model in PUBLIC_MODELS.values():
        if model.head:
            assert all(model.head in PARTS_OF_TASK[task] for task in model.checkpoint_tasks)


def test_served_by() -> None:
    assert [model.name for model in served_by(["visual-question-answering"])] == ["vqa"]
    assert [model.name for model in served_by(["video-question-answering"])] == ["caption", "vqa"]


def test_an_unknown_model_is_an_error_that_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(NotServed, match=r"'captions'; known: caption, vqa"):
        public_model("captions")
    (tmp_path / "served.json").write_text(json.dumps({"model": "poem"}))
    with pytest.raises(NotServed, match="'poem'"):
        open_task(tmp_path)
