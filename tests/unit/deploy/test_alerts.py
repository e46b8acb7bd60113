"""The alerts fire for the series that they are for, and for no others: promtool evaluates them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "alerts_test.yaml"
PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool, of Prometheus, is not on the PATH")
def test_alerts_fire_when_they_should() -> None:
    done = subprocess.run([PROMTOOL, "test", "rules", TESTS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
