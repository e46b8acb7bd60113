"""The tasks of public models against cases that `make_cases.py` made with the published code."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import av
import numpy as np
import pytest
from eager_stages import EagerStages
from golden import DATA, SCORE_TOLERANCE

from mplug.checkpoint import load_checkpoint
from mplug.inputs.tokenizer import Tokenizer
from mplug.inputs.video import sample_indices
from mplug.tasks.caption import CaptionTask
from mplug.tasks.checkpoint_files import ServedCheckpoint
from mplug.tasks.ground import GroundTask
from mplug.tasks.retrieval import MatchTask
from mplug.tasks.vqa import VqaTask

TASKS = {"caption": CaptionTask, "vqa": VqaTask, "match": MatchTask, "ground": GroundTask}
CASES = sorted(DATA.glob("**/answers.json"))
FILES = ("IMAGE", "VIDEO")
WORDS = ("OCR", "OBJECTS", "CANDIDATES", "TEXT")


@pytest.fixture(scope="module")
def task_of():
    """`task_of(checkpoint, task)`: the task of a checkpoint, and its stages."""
    opened: dict = {}

    def task_of(*wanted):
        if wanted not in opened:
            opened[wanted] = open_task(*wanted)
        return opened[wanted]

    yield task_of
    for _, stages in opened.values():
        stages.close()


def open_task(checkpoint: Path, task: str):
    network, _ = load_checkpoint(checkpoint)
    tokenizer = Tokenizer(checkpoint / "vocab.txt", network.config.text.vocab_size)
    served = ServedCheckpoint(network.config, tokenizer, network.config.vision.image_size)
    return TASKS[task](served), EagerStages(network, tokenizer.cls_id, tokenizer.sep_id)


def tensor(folder: Path, name: str, value):
    """A request's value as the task takes it."""
    if name in FILES:
        return [(folder / file).read_bytes() for file in ([value] if isinstance(value, str) else value)]
    if name in WORDS:
        return [word.encode() for word in value]
    return [value.encode()] if isinstance(value, str) else np.array([value], np.int32)


def requests() -> list:
    """Every request of every case, named after its folder and its number."""
    found = []
    for path in CASES:
        case = json.loads(path.read_text())
        checkpoint = (path.parent / case["checkpoint"]).resolve()
        for index, request in enumerate(case["requests"]):
            found.append(pytest.param(path.parent, checkpoint, case["task"], request, id=f"{path.parent.name}-{index}"))
    return found


def test_there_are_cases_of_every_task() -> None:
    assert {json.loads(path.read_text())["task"] for path in CASES} == set(TASKS)


@pytest.mark.parametrize(("folder", "checkpoint", "task", "request_"), requests())
def test_answers_are_the_published_ones(task_of, folder: Path, checkpoint: Path, task: str, request_: dict) -> None:
    served, stages = task_of(checkpoint, task)
    inputs = {name: tensor(folder, name, value) for name, value in request_["inputs"].items()}
    answer = asyncio.run(served.run(served.parse(inputs), stages))
    for name, reference in request_["answer"].items():
        if name == "TOKEN_IDS":
            # Padding stands behind a hypothesis; within one, [PAD] is a token like any other.
            found = [np.trim_zeros(row, "b").tolist() for row in answer[name]]
            assert found == [np.trim_zeros(row, "b") for row in reference]
        elif name == "ANSWER":
            assert [text.decode() for text in answer[name]] == reference
        else:
            np.testing.assert_allclose(answer[name], reference, atol=SCORE_TOLERANCE, err_msg=name)


def films() -> list:
    """Every request with a video, and the frames that the published loader took of it."""
    return [pytest.param(*each.values, id=each.id) for each in requests() if "frames" in each.values[3]]


@pytest.mark.parametrize(("folder", "_checkpoint", "_task", "request_"), films())
def test_frames_are_those_of_the_published_loader(folder: Path, _checkpoint: Path, _task: str, request_: dict) -> None:
    with av.open(str(folder / request_["inputs"]["VIDEO"])) as container:
        count = sum(1 for _ in container.decode(video=0))
    assert sample_indices(count, request_["inputs"]["FRAMES"]) == request_["frames"]
