"""What the parts measure on: a random checkpoint and the repository built from it, in a scratch folder.

Both are made once and used again until what they are made of changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.presets import PRESETS, Preset

ROOT = Path(__file__).resolve().parents[1]
BUILD_INFO = "build_info.json"
#: A repository is older than these when it has to be built again.
SOURCES = (
    "builders/*.py",
    "builders/compile/*.py",
    "model_repository/**/*",
    "mplug/network/*.py",
    "mplug/runtime/*.py",
    "mplug/checkpoint.py",
    "mplug/config.py",
    "mplug/contract.py",
)


@dataclass(frozen=True)
class Workspace:
    """One preset's folder."""

    folder: Path
    preset: Preset
    precision: str = "auto"
    served: Path | None = None  #: a repository to run against instead, where a part can
    tasks: tuple[str, ...] = ()  #: of the checkpoint; none: it captions
    series: tuple[str, ...] = ()  #: what `throughput` measures; none: everything
    earlier: Path | None = None  #: the result file with the series that are not measured again

    def at_preset(self, name: str) -> Workspace:
        """Return the workspace of another preset beside this one."""
        return replace(self, preset=PRESETS[name])

    def at_precision(self, precision: str) -> Workspace:
        """Return the workspace of the same checkpoint, its stages in another precision."""
        return replace(self, precision=precision)

    @property
    def checkpoint(self) -> Path:
        return self.folder / self.preset.name / ("checkpoint-tasks" if self.tasks else "checkpoint")

    @property
    def repository(self) -> Path:
        name = f"repository-tasks-{self.precision}" if self.tasks else f"repository-{self.precision}"
        return self.folder / self.preset.name / name

    def prepare(self) -> Path:
        """Make what is missing or out of date; returns the repository. Raises CalledProcessError."""
        if not (self.checkpoint / "model.safetensors").exists():
            say(f"writing a random checkpoint, {self.preset.name} size")
            _python(
                "-m",
                "benchmarks.base_checkpoint",
                "--output",
                self.checkpoint,
                "--preset",
                self.preset.name,
                *(["--tasks", *self.tasks] if self.tasks else []),
            )
        built = self.repository / BUILD_INFO
        if not built.exists() or built.stat().st_mtime < self._newest_source():
            say("building its repository: a minute or two at base size")
            _python("builders/build.py", self.checkpoint, "--output", self.repository, "--precision", self.precision)
        return self.repository

    def _newest_source(self) -> float:
        files = [path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()]
        times = [path.stat().st_mtime for path in files if "__pycache__" not in path.parts]
        return max([*times, (self.checkpoint / "model.safetensors").stat().st_mtime])

    def build_info(self) -> dict[str, Any]:
        """Read what the repository was built from."""
        return read_build_info(self.repository)

    def one_slot_repository(self) -> Path:
        """Make a copy of the repository whose decoder takes one request at a time: no in-flight batching."""
        copy = self.repository.with_name(f"{self.repository.name}-one-slot")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.repository, copy, copy_function=_link)
        config = copy / "text_decoder" / "config.pbtxt"
        changed = with_parameter(config.read_text(), "max_slots", "1")
        config.unlink()  # a link: writing through it would change the original
        config.write_text(changed)
        return copy


def with_parameter(config: str, key: str, value: str) -> str:
    """Set one parameter of a config.pbtxt. Raises ValueError if it has none of that name."""
    pattern = rf'(key:\s*"{re.escape(key)}"\s*,?\s*value:\s*{{\s*string_value:\s*")[^"]*(")'
    changed, times = re.subn(pattern, rf"\g<1>{value}\g<2>", config)
    if times != 1:
        raise ValueError(f"the configuration has the parameter {key} {times} times, not once")
    return changed


def read_build_info(repository: Path) -> dict[str, Any]:
    """Read what a repository was built from, as its builder wrote it."""
    return json.loads((repository / BUILD_INFO).read_text())


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"  {text}", file=sys.stderr, flush=True)


def _python(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True, stdout=sys.stderr)


def _link(source: str, target: str) -> None:
    link: Callable[[str, str], Any] = os.link
    try:
        link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def write_result(document: dict[str, Any], path: Path | None) -> None:
    """Write a result file, or print it."""
    text = json.dumps(document, indent=1) + "\n"
    if path is None:
        print(text, end="")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
