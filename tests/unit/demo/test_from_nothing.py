"""The command from nothing: stopped and begun again it makes the same weights, and it knows another's run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders.train.run_log import CLOCK, hours_of
from builders.train.run_state import ResumeError
from demo import from_nothing
from demo import train as demo_train
from demo.training import run_record
from demo.training.run_record import RunRecord

HERE = Path(__file__).parent
LEGS = "sprites:2,pretrain:2"
RECORD = RunRecord(0, LEGS, None, "fp32", 2, "a CPU", "2.13.0")
PATIENCE = 300  # seconds


def start(output: Path) -> subprocess.Popen:
    command = [sys.executable, str(HERE / "curriculum_process.py"), "--output", str(output), "--legs", LEGS]
    options = ["--without-figures", "--save-every", "1"]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[2]}:{HERE}", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *options], env=environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


@pytest.mark.skipif("MPLUG_TEST_SLOW" not in os.environ, reason="takes more than a minute: set MPLUG_TEST_SLOW=1")
def test_a_run_that_was_stopped_and_begun_again_makes_the_same_weights(tmp_path):
    stopped = start(tmp_path / "parts")
    first = tmp_path / "parts/1-sprites/states/step-000001"
    deadline = time.monotonic() + PATIENCE
    while not first.exists() and stopped.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    stopped.send_signal(signal.SIGINT)
    code, _, err = finish(stopped)
    assert code == 130 and "is kept: the same command goes on" in err, err
    assert "Traceback" not in err
    assert not (tmp_path / "parts/checkpoint").exists()

    code, out, err = finish(start(tmp_path / "parts"))
    assert code == 0, err
    assert "is kept; going on from there" in out
    code, out, err = finish(start(tmp_path / "whole"))
    assert code == 0 and "going on" not in out, err
    weights = [(tmp_path / run / "checkpoint/model.safetensors").read_bytes() for run in ("parts", "whole")]
    assert weights[0] == weights[1]
    processes = [torch.load(tmp_path / f"whole/learner-{rank}.pt", weights_only=True) for rank in range(2)]
    assert [name for name in processes[0] if not torch.equal(processes[0][name], processes[1][name])] == []
    assert processes[0]["contrast.enqueued"] == 2 * 2 * 6
    last = json.loads((tmp_path / "whole/2-pretrain/log.jsonl").read_text().splitlines()[-1])
    assert last["samples"] == 2 * 2 * 8, "steps, processes, scenes"
    assert 0 < hours_of(tmp_path / "parts/2-pretrain") < 1
    record = RunRecord.read(tmp_path / "parts")
    assert (record.seed, record.legs, record.processes) == (0, LEGS, 2)


def run(capsys: pytest.CaptureFixture, *options: object) -> tuple[int, str]:
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = from_nothing.main([*map(str, options), "--without-figures"])
    finally:
        signal.signal(signal.SIGTERM, before)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "holds a run with seed 0 and not 1: continue that one, or name another folder"),
        (["--legs", "sprites:2"], "holds a run with legs sprites:2,pretrain:2 and not sprites:2: continue that one"),
    ],
)
def test_another_run_in_the_folder_is_told(options, message, tmp_path, capsys):
    RECORD.write(tmp_path)
    code, err = run(capsys, "--output", tmp_path, "--legs", LEGS, *options)
    assert code == 1 and message in err and err.count("\n") == 1


def test_folders_that_are_no_run(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in run(capsys, "--output", tmp_path / "file")[1]
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/run.json").write_text('{"seed": 0')
    assert "damaged, or no record of a run" in run(capsys, "--output", tmp_path / "torn")[1]
    (tmp_path / "unknown/1-sprites/states/step-000001").mkdir(parents=True)
    code, err = run(capsys, "--output", tmp_path / "unknown", "--legs", LEGS)
    assert code == 1 and "holds states, but no record of the run they are of" in err


def test_one_run_at_a_time_in_a_folder(tmp_path):
    with (
        run_record.hold(tmp_path),
        pytest.raises(ResumeError, match="another run is training"),
        run_record.hold(tmp_path),
    ):
        pass
    with run_record.hold(tmp_path):
        pass


@pytest.mark.parametrize(
    ("asked", "earlier", "able", "chosen", "told"),
    [
        ("auto", None, True, "bf16", "which this CPU computes in"),
        ("auto", None, False, "fp32", "since this CPU has no bf16 instructions"),
        ("auto", "fp32", True, "fp32", "as the run began"),
        ("auto", "bf16", False, "bf16", "which this CPU emulates"),
        ("fp32", None, True, "fp32", "as asked for"),
    ],
)
def test_the_precision_is_what_the_cpu_computes_or_the_run_began_in(
    asked, earlier, able, chosen, told, monkeypatch, capsys
):
    monkeypatch.setattr(demo_train, "best_precision", lambda: "bf16" if able else "fp32")
    monkeypatch.setattr(demo_train, "supported", lambda precision: able or precision == "fp32")
    record = replace(RECORD, precision=earlier) if earlier else None
    assert demo_train.precision_for(asked, record) == chosen
    assert f"precision {chosen}, {told}" in capsys.readouterr().out


def test_hours_are_those_of_the_steps_that_count(tmp_path):
    marks = [(0, 0), (50, 3600), (50, 9000), (100, 10800)]  # stopped after step 50, and begun again after a pause
    (tmp_path / CLOCK).write_text("".join(json.dumps({"step": s, "time": t}) + "\n" for s, t in marks))
    assert hours_of(tmp_path) == pytest.approx(1.5)
