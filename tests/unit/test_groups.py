"""The processes that share the tests do not share the tests of a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests: nothing to divide")
def test_a_file_stays_in_one_process(request: pytest.FixtureRequest) -> None:
    """Else every process would start every server; pytest-xdist divides by what stands behind the @ of a name."""
    assert request.node.nodeid.endswith(f"@{Path(__file__).name}")
