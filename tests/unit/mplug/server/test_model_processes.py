"""Which processes of a server are watched, and what is said of one that ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mplug.server.model_processes import ModelProcesses

#: Starts as many children as it is told, prints their ids and never waits for them, as tritonserver with its stubs.
PARENT = """
import subprocess, sys, time
stub, count = sys.argv[1], int(sys.argv[2])
children = [subprocess.Popen([stub, "/repository/text_decoder/1/model.py", "600"]) for _ in range(count)]
print(*(child.pid for child in children), flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    stub = tmp_path / "triton_python_backend_stub"
    stub.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    stub.chmod(0o755)
    started = subprocess.Popen([sys.executable, "-c", PARENT, stub, "2"], stdout=subprocess.PIPE, text=True)
    yield started
    for process in [*psutil.Process(started.pid).children(), started]:
        process.kill()
    started.wait()


def stubs(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    """The children, once they are what they are named after."""
    found = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    deadline = time.monotonic() + 20
    while not all(child.name() == "triton_python_b" for child in found):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def wait_zombie(process: psutil.Process) -> None:
    deadline = time.monotonic() + 20
    while process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stub_that_dies_is_a_fault(parent: subprocess.Popen[str]) -> None:
    first, second = stubs(parent)
    watched = ModelProcesses(parent.pid)
    assert sorted(watched.pids) == sorted([first.pid, second.pid]) and watched.fault() is None
    second.kill()
    wait_zombie(second)
    assert f"(process {second.pid}) has died" in watched.fault()


def test_a_stub_that_died_before_readiness_is_a_fault_at_once(parent: subprocess.Popen[str]) -> None:
    first, _ = stubs(parent)
    first.kill()
    wait_zombie(first)
    assert ModelProcesses(parent.pid).fault() == f"the process of a model (process {first.pid}) has died"


def test_a_stub_that_is_stopped_for_a_moment_is_none(parent: subprocess.Popen[str]) -> None:
    first, _ = stubs(parent)
    watched = ModelProcesses(parent.pid)
    first.suspend()
    assert watched.fault() is None
    first.resume()
    deadline = time.monotonic() + 20
    while first.status() == psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
    assert watched.fault() is None
