"""The eye's ablation looks at styles that no variant learnt from, and goes on where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from demo import eye_ablation
from demo.scenes.sprites import TRAIN_STYLES

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def small(monkeypatch):
    """As few scenes as do, and a record of the styles that pools were drawn in."""
    drawn = []
    pool_of = eye_ablation.pool_of

    def recorded(variant, styles, seed, scenes):
        drawn.append(tuple(styles))
        return pool_of(variant, styles, seed, scenes)

    monkeypatch.setattr(eye_ablation, "SCENES", 4)
    monkeypatch.setattr(eye_ablation, "pool_of", recorded)
    return drawn


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["eye_ablation.py", *map(str, arguments)])
    return eye_ablation.main()


def test_turns_leave_styles_out_and_finished_ones_stay(small, monkeypatch, capsys, tmp_path):
    output = tmp_path / "network.json"
    asked = ("--about", "network", "--minutes", "0.0001", "--pool", "64", "--output", output, "--left-out")
    assert run(monkeypatch, *asked, "fxemoji,streamline") == 0
    assert small == [tuple(style for style in TRAIN_STYLES if style not in ("fxemoji", "streamline"))]
    first = json.loads(output.read_text())["runs"]
    assert [said["variant"] for said in first] == [variant.name for variant in eye_ablation.ABOUT["network"]]
    assert all(said["steps"] == 1 and {"fxemoji", "streamline"} < said["looks"][0].keys() for said in first)

    assert run(monkeypatch, *asked, "fxemoji,streamline", "emojione") == 0
    assert len(small) == 2 and "emojione" not in small[1]
    runs = json.loads(output.read_text())["runs"]
    assert runs[: len(first)] == first and {said["seed"] for said in runs[len(first) :]} == {1}
    assert "| variant | steps | fxemoji, streamline | emojione | difference |" in capsys.readouterr().out

    with pytest.raises(SystemExit):
        run(monkeypatch, "--about", "traits", "--minutes", "0.0001", "--output", output)
    assert "is of other settings: {'about': 'network', 'minutes': 0.0001" in capsys.readouterr().err


def test_unknown_styles_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--about", "network", "--left-out", "fxemoji,twemoji")
    assert "argument --left-out: twemoji: choose from" in capsys.readouterr().err


def test_differences_are_within_a_turn():
    runs = [
        {
            "variant": variant,
            "left_out": turn.split(","),
            "steps": 10,
            "looks": [{"noto": 0.0, **dict.fromkeys(scores, 0.0)}, {"noto": 1.0, **scores}],
        }
        for variant, turn, scores in (
            ("one", "a,b", {"a": 0.2, "b": 0.4}),
            ("two", "a,b", {"a": 0.3, "b": 0.5}),
            ("one", "c", {"c": 0.5}),
            ("two", "c", {"c": 0.8}),
        )
    ]
    lines = list(eye_ablation.table(runs, ["one", "two"]))
    assert lines[2:] == ["| one | 10 | 30.0 | 50.0 | -20.0 ± 10.0 |", "| two | 10 | 40.0 | 80.0 | +0.0 |"]


@pytest.mark.parametrize("about", eye_ablation.ABOUT)
def test_the_page_has_what_was_measured(about):
    """Its tables are those of the JSON beside it, of the variants that the command compares today."""
    kept = json.loads((DOCS / f"eye-{about}.json").read_text())
    assert kept["about"] == about
    lines = eye_ablation.table(kept["runs"], [variant.name for variant in eye_ablation.ABOUT[about]])
    assert "\n".join(lines) in (DOCS / "eye-ablation.md").read_text()
