"""The demo checkpoint's card is what its figures say, and says what is missed and how far seeds scatter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from demo import card, figures
from demo.card import CARD, card_of
from demo.figures import FIGURES, FiguresError
from demo.splits import SPLITS
from demo.training.run_record import RunRecord

DEMO = Path(__file__).parents[3] / "checkpoints/demo"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with the demo's weights, and figures of its own."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.yaml", "config_bert.json", "model.safetensors", "vocab.txt"):
        (folder / name).symlink_to(DEMO / name)
    (folder / FIGURES).write_text((DEMO / FIGURES).read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def change(path: Path, **changes: object) -> dict:
    document = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(document), encoding="utf-8")
    return document


def outcome(part: str, split: str, recall: float) -> dict:
    wrong = {"key": "0", "asked": "", "truth": "a | b", "answer": ""}
    metrics = {"object recall": recall, "SPICE": "not computed: no models"}
    about = {"part": part, "task": "caption", "split": split, "items": 1000}
    return {**about, "metrics": metrics, "mistakes": 1, "first_mistakes": [wrong]}


def test_the_committed_card_is_what_the_script_writes():
    assert (DEMO / CARD).read_text(encoding="utf-8") == card_of(DEMO), "run: python demo/card.py checkpoints/demo"


def test_aims_are_met_or_missed_or_not_measured(checkpoint):
    parts = [outcome("test", "training styles", 0.9696), outcome("test-twemoji", "Twemoji (held out)", 0.7794)]
    change(checkpoint / FIGURES, outcomes=parts, left_out={"OpenMoji (held out)": "no npm"})
    text = card_of(checkpoint)
    assert "| caption | object recall | 97.0 | 77.9 |" in text
    assert "| caption | object recall | 97.0 (97) | 77.9 (78) missed | not measured (45) |" in text
    assert "1 met, 1 missed" in text
    assert "Left out: OpenMoji (held out): no npm" in text
    assert "SPICE: not computed: no models" in text
    assert "| caption | training styles | – | a \\| b | (nothing) |" in text


def test_weights_fine_tuned_for_easy_vqa_stand_apart(checkpoint):
    answers = {"part": "easy-vqa", "task": "vqa", "split": "easy-vqa test", "items": 9673, "mistakes": 0}
    answers |= {"metrics": {"accuracy": 0.9812}, "first_mistakes": []}
    change(checkpoint / FIGURES, outcomes=[outcome("test", "training styles", 0.97), answers])
    text = card_of(checkpoint)
    assert "1,000 items of each split" in text
    assert "it answers 98.1 % of the 9,673 test questions." in " ".join(text.split())
    assert "| vqa | accuracy | not measured (96) | not measured (87) | not measured (75) | 98.1 (99) missed |" in text
    assert "| vqa | accuracy |  | 98.1 |" not in text


def test_seeds_scatter_beside_the_first(checkpoint):
    training = {"seed": 0, "processes": 2, "precision": "bf16", "torch": "2.13.0", "cpu": "a CPU"}
    training["legs"] = [{"leg": "sprites", "steps": 3000, "scenes": 384_000, "hours": 0.55}]
    change(
        checkpoint / FIGURES, outcomes=[outcome("test", "training styles", 0.95)], training=training, styles=["noto"]
    )
    other = checkpoint / "figures-seed-1.json"
    other.write_text((checkpoint / FIGURES).read_text())
    change(other, outcomes=[outcome("test", "training styles", 0.963)], training={**training, "seed": 1})
    text = card_of(checkpoint)
    assert "| caption | object recall | 95.0 (95.0 to 96.3) | – | – |\n" in text, "no column of fine-tuned weights"
    assert "2 runs, seeds 0, 1;" in " ".join(text.split())
    assert "`make train-demo SEED=0`: 2 processes, bf16, PyTorch 2.13.0, on a CPU, in 0.6 hours" in " ".join(
        text.split()
    )
    assert "| `sprites` | 3,000 | 384 | 0.55 |" in text
    assert "renderings of Noto Emoji (Apache-2.0, Google), and are scored" in " ".join(text.split())


def test_figures_of_other_weights_or_none_are_refused(checkpoint, monkeypatch, capsys):
    change(checkpoint / FIGURES, weights_sha256="0" * 64)
    with pytest.raises(FiguresError, match="are those of other weights; measure again"):
        card_of(checkpoint)
    (checkpoint / FIGURES).write_text("[]")
    with pytest.raises(FiguresError, match=r"is no figures\.json"):
        card_of(checkpoint)
    (checkpoint / FIGURES).unlink()
    monkeypatch.setattr("sys.argv", ["card.py", str(checkpoint)])
    assert card.main() == 1
    assert "demo/figures.py CHECKPOINT measures them" in capsys.readouterr().err


def test_what_is_measured_is_kept_and_the_rest_is_told(checkpoint, tmp_path, monkeypatch):
    calls = []

    def call(*command: str) -> None:
        calls.append(command)
        if "--output" in command and command[0] != "builders/build.py":
            part = {"outcomes": [{"task": "caption", "split": "x", "items": 5, "metrics": {}, "first_mistakes": []}]}
            Path(command[command.index("--output") + 1]).write_text(json.dumps(part))
        else:
            folder = Path(command[command.index("--output") + 1])
            folder.mkdir(parents=True)
            (folder / "build_info.json").write_text('{"precision": "fp32"}')

    def no_network(styles: object, folder: Path) -> None:
        raise RuntimeError("npm is not here")

    monkeypatch.setattr(figures, "_call", call)
    monkeypatch.setattr(figures, "build_atlases", no_network)
    for name in ("test-openmoji", "test-photographs"):
        monkeypatch.setitem(SPLITS, name, replace(SPLITS[name], folder=tmp_path / "art"))
    record = RunRecord(3, "sprites:2", None, "fp32", 2, "a CPU", "2.13.0")
    record.write(tmp_path)
    (tmp_path / "1-sprites").mkdir()
    (tmp_path / "1-sprites/log.jsonl").write_text('{"step": 2, "samples": 32, "metrics": {}}\n')
    for _ in range(2):
        figures.measure(checkpoint, tmp_path / "work", run=tmp_path, items=5)
    assert len(calls) == 1 + 3, "a build and three splits, once"
    document = json.loads((checkpoint / FIGURES).read_text(encoding="utf-8"))
    assert document["left_out"] == {
        "OpenMoji (held out)": "npm is not here",
        "photographs": "not fetched: `python demo/scenes/photographs.py`",
    }
    assert document["training"]["legs"] == [{"leg": "sprites", "steps": 2, "scenes": 32, "hours": 0.0}]
    assert (document["training"]["seed"], [each["part"] for each in document["outcomes"]]) == (
        3,
        ["test", "test-twemoji", "test-pairs"],
    )
