"""Settings that Ray reads from the environment when it is imported, and no later."""

from __future__ import annotations

import os
from pathlib import Path

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers without a GPU see what there is
    "RAY_task_oom_retries": "3",  # of a task that is killed where memory is short; else for ever
    "RAY_NUM_REDIS_GET_RETRIES": "5",  # seconds that a cluster may take to let us in
}
#: Where `ray start` leaves the key of its cluster, and where users put it on other machines.
TOKEN = Path.home() / ".ray" / "auth_token"


def prepare() -> None:
    """Set what the user has not set."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if TOKEN.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
