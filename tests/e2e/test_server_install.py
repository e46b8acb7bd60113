"""Which tritonserver is used, and what is said when none can be."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mplug.server import install as triton_install
from mplug.server.install import LIBPYTHON, PYTHON, STUB, ServerError, find_triton

WHEEL = Path(importlib.util.find_spec("pytriton").submodule_search_locations[0])
OTHER_PYTHON = next(version for version in ("3.10", "3.12") if version != PYTHON)


def install_like_a_container(prefix: Path, python: str) -> Path:
    """The wheel's server laid out as NVIDIA's container has it, with the stub of one Python version."""
    triton = WHEEL / "tritonserver"
    for folder in ("backends", "caches"):
        shutil.copytree(triton / folder, prefix / folder)
    shutil.copy(triton / "python_backend_stubs" / python / STUB, prefix / "backends" / "python")
    (prefix / "bin").mkdir()
    shutil.copy(triton / "bin" / "tritonserver", prefix / "bin")
    return prefix / "bin"


def test_the_server_on_the_path_comes_first(scratch_repository: Path, tmp_path: Path) -> None:
    programs = install_like_a_container(tmp_path / "tritonserver", PYTHON)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(WHEEL.parent / "nvidia_pytriton.libs"),
    }
    command = [
        sys.executable,
        "-m",
        "mplug.server",
        scratch_repository,
        "--run",
        "pgrep",
        "-f",
        f"^{programs}",
    ]
    result = subprocess.run(
        command, cwd=triton_install.CHECKOUT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "relay" in result.stderr
    assert len(result.stdout.split()) == 1


def test_an_installed_server_for_another_python(tmp_path: Path) -> None:
    programs = install_like_a_container(tmp_path / "tritonserver", OTHER_PYTHON)
    with pytest.raises(ServerError, match=rf"runs models on Python {OTHER_PYTHON}.*--tritonserver wheel"):
        find_triton(tmp_path, str(programs / "tritonserver"))


def test_missing_libraries_are_named_with_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = f"\t{LIBPYTHON} => not found\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n"
    monkeypatch.setattr(triton_install, "_linked", lambda *_: loader)
    with pytest.raises(ServerError, match=rf"missing: {LIBPYTHON}; .*apt-get install libpython{PYTHON}$"):
        find_triton(tmp_path, "wheel")


def test_no_server_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"no tritonserver found: .*requirements-serve\.txt"):
        find_triton(tmp_path)
    with pytest.raises(ServerError, match="is not an executable"):
        find_triton(tmp_path, str(tmp_path / "absent"))
