"""A fresh virtual environment with our wheel, used from outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel; its working directory is outside the checkout."""

    folder: Path

    def run(self, program: str, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, such as `mplug`, and return what it printed."""
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            [self.folder / "bin" / program, *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == code, done.stderr
        return done


def environment_with(wheel: Path, packages: Path, folder: Path) -> Environment:
    """Return a fresh environment with the wheel alone installed, which reads all else from another's site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "other_packages.pth").write_text(f"{packages}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--ignore-installed", wheel], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return Environment(folder)
