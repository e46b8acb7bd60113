"""Stages take turns on the cores: one at a time, whoever dies gives its turn back, and a setting does without."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from mplug.runtime.turns import Turn, turn_of

HOLDER = """
import sys, time
from pathlib import Path
from mplug.runtime.turns import Turn

with Turn(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


def cores(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(number)))


def test_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0
    counting = threading.Lock()

    def stage() -> None:
        nonlocal inside, most
        turn = Turn(tmp_path)
        for _ in range(200):
            with turn:
                with counting:
                    inside += 1
                    most = max(most, inside)
                with counting:
                    inside -= 1

    stages = [threading.Thread(target=stage) for _ in range(4)]
    for each in stages:
        each.start()
    for each in stages:
        each.join()
    assert most == 1


def test_folders_do_not_wait_for_each_other(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with Turn(tmp_path / "one"), Turn(tmp_path / "two"):
        pass


def test_the_turn_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
        taken = threading.Event()

        def wait() -> None:
            with Turn(tmp_path):
                taken.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not taken.wait(0.2), "two have the turn"
        holder.kill()
        waiting.join(20)
        assert taken.is_set()


def test_an_error_gives_the_turn_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Turn(tmp_path):
        raise RuntimeError("the stage broke")
    with Turn(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_will_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with Turn(tmp_path):
        pass


@pytest.mark.parametrize(("threads", "number", "taken"), [
    ("", 2, True), ("2", 2, True), ("1", 2, False), ("1", 1, True), ("3", 4, True), ("2", 4, False),
])
def test_who_needs_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str, number: int, taken: bool
) -> None:
    """Those whose threads are too many for two stages side by side."""
    cores(monkeypatch, number)
    monkeypatch.setenv("MPLUG_THREADS", threads)
    assert isinstance(turn_of(tmp_path), Turn if taken else nullcontext)


def test_a_file_system_without_locks_is_told_and_does_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(turn_of(tmp_path / "absent"), nullcontext)
    assert "absent: cannot be locked" in capsys.readouterr().err
