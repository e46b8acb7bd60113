"""Measure the memory of a server's processes."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def group_memory(group: int) -> dict[str, float]:
    """Return the resident memory in MiB of every process of a process group, by name and id.

    A stub's name is that of the model it runs. Shared pages count in each process that holds them.
    """
    found = {}
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group:
                found[f"{_name(process.cmdline())} {process.pid}"] = process.memory_info().rss / 2**20
        except (psutil.Error, OSError, IndexError):
            continue  # it has just ended
    return found


def _name(command: list[str]) -> str:
    """Return `tritonserver`, or the model of a Python backend's stub: its command line holds …/MODEL/1/model.py."""
    for argument in command:
        path = Path(argument)
        if path.name == "model.py" and len(path.parts) >= 3:
            return path.parts[-3]
    return Path(command[0]).name
