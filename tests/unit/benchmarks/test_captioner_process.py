"""Contenders in processes of their own: what they answer, how they fail, and that they end quietly."""

from __future__ import annotations

import argparse
from contextlib import closing

import pytest

from benchmarks.contenders.captioner import CaptionerProcess, ContenderError
from benchmarks.run import _seconds


def test_a_captioner_answers_and_its_errors_arrive() -> None:
    with closing(CaptionerProcess("fake_captioner", "a workspace")) as captioner:
        assert captioner.caption(b"a picture", 3) == [101, 0, 1, 2]
        with pytest.raises(ContenderError, match="ValueError: no such picture"):
            captioner.caption(b"broken", 3)
        with pytest.raises(ContenderError, match="its process has ended"):
            captioner.caption(b"a picture", 3)
    with pytest.raises(ContenderError, match="RuntimeError: no workspace"):
        CaptionerProcess("fake_captioner", None)


def test_a_benchmark_that_ends_during_a_caption_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    captioner = CaptionerProcess("fake_captioner", "a workspace")
    captioner._connection.send((b"slow", 3))  # and nobody waits for the answer
    captioner.close()
    assert captioner._process.exitcode == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_limits_are_positive_numbers(text: str) -> None:
    assert _seconds("2.5") == 2.5
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a positive number of seconds"):
        _seconds(text)
