"""Commands of bulk work outside of their environment."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("command", [["bulk/caption.py"], ["-m", "mplug_triton", "bulk-caption"]])
def test_the_environment_of_a_server_is_refused(command: list[str], tmp_path: Path) -> None:
    """In one line, which says what to make; pip would have been content."""
    done = subprocess.run(
        [sys.executable, *command, "photos", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(
        rf"error: bulk work needs NumPy 2, and this environment has NumPy {re.escape(np.__version__)}, [^\n]*"
        r"`make bulk` makes an environment for bulk work, \.venv/bulk; [^\n]*\n",
        done.stderr,
    ), done.stderr
