"""Training on several machines: two of them here, each with a torchrun of its own; continued by other numbers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shard_run import STEPS, run
from training_fixtures import write_vocabulary

from builders.data.readers.webdataset import Shards, ShardStream, find_shards
from builders.train import run_state
from builders.train.run_state import ResumeError

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
sys.path.insert(0, str(DATA))

from shard_fixtures import write_shards  # noqa: E402

TOGETHER = 6  # pictures of a batch of all processes


def start(node: list[str], *arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[3]}:{HERE}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *node, str(HERE / "shard_run.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(*started: subprocess.Popen) -> None:
    for process in started:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    """A vocabulary, and shards with 25 pictures to train on and 6 to validate on."""
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "shards", (5, 3, 7, 4, 6), text="a dark red picture")
    write_shards(folder / "shards/val", (4, 2), text="a bright green picture")
    return write_vocabulary(folder), folder / "shards"


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory) -> Path:
    """Two machines with a process each have trained half of the steps."""
    output = tmp_path_factory.mktemp("begun")
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    meeting += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    finish(*(start(meeting, *data, output, TOGETHER // 2, STEPS // 2) for _ in range(2)))
    return output


def seen(output: Path) -> dict[int, list[str]]:
    """The pictures of each batch of all processes together."""
    batches: dict[int, list[str]] = {}
    for path in sorted(output.glob("seen-*.jsonl")):
        for line in path.read_text().splitlines():
            index, keys = json.loads(line)
            batches.setdefault(index, []).extend(keys)
    return batches


def tensors(state: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in state.glob("*.safetensors") for name, tensor in load_file(path).items()}


def continued_copy(begun: Path, output: Path) -> Path:
    """A run's folder to continue in, and its newest state."""
    shutil.copytree(begun, output)
    for path in output.glob("seen-*"):
        path.unlink()
    return run_state.find(output, "latest")


def test_two_machines_see_every_picture_once_and_each_writes_its_part(data, begun):
    expected = ShardStream(Shards(find_shards(data[1])), TOGETHER, seed=5)
    assert seen(begun) == {index: [record.key for record in expected.batch(index)] for index in range(2)}
    state = run_state.find(begun, "latest")
    parts = sorted(path.stat().st_size for path in state.glob("*.safetensors"))
    assert len(parts) == 2 and parts[0] > 0.2 * parts[1], "both processes write"


def test_another_number_of_processes_continues_with_the_pictures_that_come_next(data, begun, tmp_path):
    state = continued_copy(begun, tmp_path / "three")
    three = start(["--standalone", "--nproc-per-node", "3"], *data, tmp_path / "three", TOGETHER // 3, STEPS, state)
    finish(three)
    alone = [
        run(*data, tmp_path / name, TOGETHER, STEPS, continued_copy(begun, tmp_path / name))
        for name in ("one", "again")
    ]
    expected = ShardStream(Shards(find_shards(data[1])), TOGETHER, seed=5)
    following = {index: [record.key for record in expected.batch(index)] for index in range(2, STEPS)}
    assert seen(tmp_path / "three") == seen(tmp_path / "one") == following
    first, second = (each.learner.state_dict() for each in alone)
    assert [name for name in first if not torch.equal(first[name], second[name])] == [], "the same at every time"
    steps = [json.loads(line)["step"] for line in (tmp_path / "three/log.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4]


def test_what_is_loaded_is_what_two_processes_saved(data, begun, tmp_path):
    state = continued_copy(begun, tmp_path / "same")
    stored = tensors(state)
    trainer = run(*data, tmp_path / "same", TOGETHER, STEPS // 2, state)
    assert trainer.step == STEPS // 2
    own = {f"learner.{name}": tensor for name, tensor in trainer.learner.state_dict().items()}
    assert len(own.keys() & stored.keys()) > 200
    assert [name for name in own.keys() & stored.keys() if not torch.equal(own[name], stored[name])] == []
    names = dict(trainer.learner.named_parameters())
    moments = [name for name in stored if name.startswith("optimiser.")]
    assert len(moments) > 300
    for name in moments:
        of, _, key = name.removeprefix("optimiser.").rpartition(":")
        assert torch.equal(trainer.optimiser.state[names[of]][key], stored[name]), name


def test_processes_that_divide_the_validation_measure_what_one_measures(data, begun, tmp_path):
    two = [json.loads(line) for line in (begun / "log.jsonl").read_text().splitlines() if "metrics" in line]
    trainer = run(*data, tmp_path / "one", TOGETHER, STEPS // 2, run_state.find(begun, "latest"))
    trainer._validate()
    one = [json.loads(line) for line in (tmp_path / "one/log.jsonl").read_text().splitlines() if "metrics" in line]
    assert two[-1]["step"] == one[-1]["step"] == 2
    assert set(one[-1]["metrics"]) == {"text R@1", "image R@1", "texts written exactly"}
    # One picture of six is the least step of each; rounding could turn a tie between two pictures.
    assert two[-1]["metrics"] == pytest.approx(one[-1]["metrics"], abs=0.17)


def test_a_batch_of_another_size_does_not_continue_the_run(data, begun, tmp_path):
    with pytest.raises(ResumeError, match="batch_size of all processes together was 6, now 5"):
        run(*data, tmp_path, 5, STEPS, run_state.find(begun, "latest"))
