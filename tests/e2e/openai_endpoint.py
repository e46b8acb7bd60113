"""A `deploy/openai/run.py` of the tests' own, on a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 60


def command(grpc_url: str, *arguments: str) -> list[str]:
    """The command line of an endpoint before a server."""
    return [sys.executable, "deploy/openai/run.py", "--url", grpc_url, "--port", "0", *arguments]


@contextmanager
def endpoint_of(grpc_url: str, *arguments: str, key: str = "") -> Iterator[str]:
    """HOST:PORT of an endpoint; ended by SIGTERM, which it must take quietly."""
    process = subprocess.Popen(
        command(grpc_url, *arguments),
        cwd=CHECKOUT,
        env=os.environ | {"MPLUG_OPENAI_API_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.match(r"ready: .* at http://(127\.0\.0\.1:\d+)/v1$", line)
        assert found, line + process.communicate(timeout=SECONDS)[1]
        yield found[1]
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
