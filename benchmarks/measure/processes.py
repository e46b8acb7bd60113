"""Memory of the processes of a server, from /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

_RSS = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


def group_memory(group: int) -> dict[str, float]:
    """Resident memory in MiB of every process of a process group, by name and id.

    A stub's name is that of the model it runs. Shared pages count in each process that holds them.
    """
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getpgid(int(folder.name)) != group:
                continue
            status = _RSS.search((folder / "status").read_text())
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ProcessLookupError):
            continue  # it has just ended
        if status is not None:
            found[f"{_name(command)} {folder.name}"] = int(status[1]) / 1024
    return found


def _name(command: list[str]) -> str:
    """`tritonserver`, or the model of a Python backend's stub: …/MODEL/1/model.py stands in its command line."""
    for argument in command:
        path = Path(argument)
        if path.name == "model.py" and len(path.parts) >= 3:
            return path.parts[-3]
    return Path(command[0]).name
