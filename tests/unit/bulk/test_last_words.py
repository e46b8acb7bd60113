"""A run of bulk work never ends without a line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, sys
from bulk.last_words import said_at_a_sudden_end

shown = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as a run keeps Ray's C++ quiet
with said_at_a_sudden_end(shown):
    exec(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("pass", False),
        ("sys.exit(1)", False),  # after a line of its own
        ("os._exit(1)", True),  # what Ray's C++ does
        ("os.kill(os.getpid(), 9)", True),  # what the kernel does when memory is full
    ],
)
def test_a_sudden_end_is_told(end: str, said: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, end]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # The pipe closes when the watching process has ended, too.
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert ("error: the run has ended without saying why" in done.stderr) == said, done.stderr
    assert done.stderr.count("\n") == said
