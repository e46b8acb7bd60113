"""What a run of the curriculum is: written beside its legs when it begins, and compared when it is continued.

A folder holds one run. Another seed or other legs would take the states that lie there for their own.
"""

from __future__ import annotations

import fcntl
import json
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from builders.train.distributed import of_all, rank
from builders.train.run_state import ResumeError

RUN, LOCK = "run.json", ".lock"
BINDING = ("seed", "legs", "init", "processes")  # what a run has in common with the one that it continues


@dataclass(frozen=True)
class RunRecord:
    """How a run began. `legs`: NAME:STEPS,…; `init`: the checkpoint that it started from; `cpu`: its model."""

    seed: int
    legs: str
    init: str | None
    precision: str
    processes: int
    cpu: str
    torch: str

    @classmethod
    def read(cls, output: Path) -> RunRecord | None:
        """Return the record of a run; None where none was begun. Raises ResumeError for a file that is none."""
        path = output / RUN
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ResumeError(f"{path}: damaged, or no record of a run ({error}); name another folder") from None

    def write(self, output: Path) -> None:
        """Write the record into the folder of a run that begins."""
        output.mkdir(parents=True, exist_ok=True)
        (output / RUN).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def check(self, wanted: RunRecord, output: Path) -> None:
        """Raise ResumeError where `wanted` is another run than this one."""
        different = [
            f"{name} {getattr(self, name)} and not {getattr(wanted, name)}"
            for name in BINDING
            if getattr(self, name) != getattr(wanted, name)
        ]
        if different:
            raise ResumeError(
                f"{output} holds a run with {'; '.join(different)}: continue that one, or name another folder"
            )


@contextmanager
def hold(output: Path) -> Iterator[None]:
    """Keep a folder for one run, while it trains. Raises ResumeError, in all processes, where another has it."""
    taken, stream = False, None
    if rank() == 0:
        output.mkdir(parents=True, exist_ok=True)
        stream = (output / LOCK).open("w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = True
    try:
        if of_all(taken)[0]:
            raise ResumeError(f"{output}: another run is training there; wait for it, or name another folder")
        yield
    finally:
        if stream is not None:
            stream.close()


def cpu_model() -> str:
    """Return what this machine's processor calls itself."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", path.read_text() if path.exists() else "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
