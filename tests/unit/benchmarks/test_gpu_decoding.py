"""The GPU's benchmark as a rehearsal on the CPU, with nothing installed but what a machine with PyTorch has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.parts import gpu_decoding
from tests.unit.installed_packages import modules_not_brought_by

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The result file of a run that cannot import any other package."""
    blocked = modules_not_brought_by(["torch", "numpy", "pyyaml"])
    assert {"safetensors", "tokenizers", "PIL", "openvino", "onnx"} <= set(blocked)
    result = tmp_path_factory.mktemp("gpu") / "result.json"
    options = ["--device", "cpu", "--preset", "quick", "--precision", "bf16", "--contenders", "recorded", "plain"]
    options += ["--slots", "1", "4", "--rounds", "1", "--captions", "1", "--mixed", "24", "--result", str(result)]
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    code += f"sys.argv[1:] = {options!r}\nimport benchmarks.parts.gpu_decoding as part\nsys.exit(part.main())"
    environment = os.environ | {"MPLUG_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "| 4 | recorded |" in done.stderr
    return json.loads(result.read_text())


def test_requests_decoded_together_are_those_decoded_alone(document: dict) -> None:
    """With beams of 1 to 16, prompts, lengths and encoder states of every size, in a decoder as on a GPU."""
    assert document["results"]["mixed_same"]["fp64"] == document["results"]["mixed_requests"] == 24
    assert [goal["reached"] for goal in document["goals"]] == [True]


def test_every_contender_has_a_row_for_every_number_of_slots(document: dict) -> None:
    results = document["results"]
    assert results["left_out"] == {}
    assert [(row["slots"], row["contender"]) for row in results["rows"]] == [
        (slots, name) for slots in (1, 4) for name in ("recorded", "plain")
    ]
    for row in results["rows"]:
        assert row["floor_seconds"] < row["step_seconds"] and row["captions_per_second"] > 0
        assert row["times_floor"] == pytest.approx(row["step_seconds"] / row["floor_seconds"], rel=0.05)


def test_a_gpu_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_decoding", "--device", "cuda:99"])
    assert gpu_decoding.main() == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: cuda:99: PyTorch ") and captured.err.count("\n") == 1
