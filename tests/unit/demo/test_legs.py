"""The demo's legs through the general trainer: each runs, and is resumed bit for bit."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from small_legs import shrink, train

from builders.train.run_state import FOLDER
from demo import train as demo_train
from demo.training import look
from demo.training.legs import LEGS
from mplug.checkpoint import load_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(look, "TEXTS", look.TEXTS)
    for name, leg in list(LEGS.items()):
        monkeypatch.setitem(LEGS, name, leg)
    shrink()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("name", LEGS)
def test_a_leg_that_is_resumed_is_the_uninterrupted_one(name, tmp_path):
    whole = train([(name, 3)], tmp_path / "whole", CPU)
    train([(name, 3)], tmp_path / "parts", CPU, until=2)
    assert not (tmp_path / "parts/checkpoint").exists()
    torch.manual_seed(99)
    assert_same(whole, train([(name, 3)], tmp_path / "parts", CPU, resume=True))
    logs = [(tmp_path / run / f"1-{name}/log.jsonl").read_text() for run in ("whole", "parts")]
    assert logs[0] == logs[1]
    records = [json.loads(line) for line in logs[0].splitlines()]
    assert all(record["leg"] == name for record in records)
    assert set(records[0]["losses"]) == set(LEGS[name].weights)
    assert ("held_out vqa" in records[-1]["metrics"]) == (name in ("tasks", "whole"))
    assert (tmp_path / f"parts/1-{name}/training.png").exists() and (tmp_path / "parts/training.png").exists()
    load_checkpoint(tmp_path / "parts/checkpoint")


def test_a_curriculum_is_resumed_in_its_second_leg(tmp_path):
    legs = [("sprites", 1), ("patches", 2)]
    whole = train(legs, tmp_path / "whole", CPU)
    train(legs, tmp_path / "parts", CPU)
    shutil.rmtree(tmp_path / "parts/2-patches" / FOLDER / "step-000002")  # as if it had been stopped after the first
    assert_same(whole, train(legs, tmp_path / "parts", CPU, resume=True))
    train([("sprites", 2), ("patches", 2)], tmp_path / "parts", CPU, until=1)
    assert not list((tmp_path / "parts/2-patches" / FOLDER).iterdir()), "another run's states would be resumed"


@pytest.mark.parametrize("legs", ["tasks", "tasks:0", "tasks:1.5", "holidays:3", "tasks:3,"])
def test_legs_that_are_none(legs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--output", str(tmp_path), "--legs", legs])
    with pytest.raises(SystemExit):
        demo_train.main()
    assert "is not NAME:STEPS, with a name of sprites, patches, pretrain, tasks, whole" in capsys.readouterr().err


def test_there_must_be_something_to_resume(tmp_path, monkeypatch, capsys):
    options = ["--output", str(tmp_path), "--legs", "sprites:1", "--resume"]
    monkeypatch.setattr(sys, "argv", ["train.py", *options])
    assert demo_train.main() == 1
    assert "start without --resume" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["train.py", *options[:-1], "--init", "nowhere"])
    assert demo_train.main() == 1
    assert "--init nowhere: holds no model.safetensors" in capsys.readouterr().err
