"""Find a tritonserver that can run this interpreter's Python models.

Two kinds are known: one on the PATH (NVIDIA's container, an installed server), and NVIDIA's own binary inside
the `nvidia-pytriton` wheel, which needs no container. The wheel's needs some help: its libraries stand in a
folder that no loader looks into, and its Python backend has one stub per Python version elsewhere. So a
scratch folder of links is laid out for each start; nothing is written into site-packages.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"
STUB = "triton_python_backend_stub"
#: The folder of the `mplug` package. tritonserver's working directory: the wheel's stubs ignore PYTHONPATH and all
#: other PYTHON variables, but look for modules where they were started.
CHECKOUT = Path(__file__).resolve().parents[2]

#: Shared libraries that slim images lack, and the Debian package that has each.
PACKAGE_OF_LIBRARY = {
    LIBPYTHON: f"libpython{PYTHON}",
    "libstdc++.so.6": "libstdc++6",
    "libexpat.so.1": "libexpat1",
    "libz.so.1": "zlib1g",
}


class ServerError(RuntimeError):
    """The server cannot be started or has ended; the message is one clear line or a few, for a person."""


@dataclass(frozen=True)
class TritonInstall:
    """A tritonserver and what it needs to run: command line `arguments` and an `environment` of its own."""

    executable: Path
    origin: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    cache_directory: Path | None = None  # None: this server has no local response cache
    bounds_bodies: bool = False  # it knows --http-max-input-size; the wheel's does not


def find_triton(scratch: Path, choice: str = "auto") -> TritonInstall:
    """The tritonserver to use.

    `scratch`: an empty folder that lives as long as the server. `choice`: `auto` (one on the PATH, else the
    wheel's), `path`, `wheel`, or the path of an executable. Raises ServerError when there is none, or when it
    cannot run this interpreter.
    """
    if choice not in ("auto", "path", "wheel"):
        executable = Path(choice).absolute()
        if not os.access(executable, os.X_OK):
            raise ServerError(f"{choice} is not an executable tritonserver")
        return _installed(executable, scratch)
    on_path = shutil.which("tritonserver")
    if on_path and choice != "wheel":
        return _installed(Path(on_path), scratch)
    if choice == "path":
        raise ServerError("no tritonserver on the PATH")
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or not wheel.submodule_search_locations:
        raise ServerError(
            "no tritonserver found: put one on the PATH (NVIDIA's container has it), or install nvidia-pytriton, which "
            "carries one: pip install 'mplug-triton[serve]', or -r requirements-serve.txt in a checkout"
        )
    return _from_wheel(Path(wheel.submodule_search_locations[0]), scratch)


def _installed(executable: Path, scratch: Path) -> TritonInstall:
    """A server with its backends and caches in the folders beside its `bin`, as in NVIDIA's container."""
    prefix = executable.resolve().parent.parent
    arguments = []
    backends, caches = prefix / "backends", prefix / "caches"
    if backends.is_dir():
        arguments = ["--backend-directory", str(backends)]
        stub = backends / "python" / STUB
        if stub.exists():
            _require_same_python(stub)
    environment = _environment(scratch, libraries=())
    return TritonInstall(
        executable,
        origin=str(executable),
        arguments=tuple(arguments),
        environment=environment,
        bounds_bodies="--http-max-input-size" in _help(executable, environment),
        cache_directory=caches if (caches / "local").is_dir() else None,
    )


def _from_wheel(package: Path, scratch: Path) -> TritonInstall:
    """The server in the wheel, with a backend folder of links in `scratch` that holds the right stub."""
    triton = package / "tritonserver"
    stub = triton / "python_backend_stubs" / PYTHON / STUB
    if not stub.exists():
        known = ", ".join(sorted(folder.name for folder in stub.parent.parent.glob("3.*")))
        raise ServerError(f"nvidia-pytriton has no Python backend for Python {PYTHON}; it has {known}")
    backend = scratch / "backends" / "python"
    backend.mkdir(parents=True)
    for source in (triton / "backends" / "python").iterdir():
        if source.name != "__pycache__":
            (backend / source.name).symlink_to(source)
    (backend / STUB).symlink_to(stub)
    environment = _environment(scratch, libraries=(package.parent / "nvidia_pytriton.libs",))
    executable = triton / "bin" / "tritonserver"
    _require_libraries((executable, stub), environment)
    return TritonInstall(
        executable,
        origin="the nvidia-pytriton wheel",
        arguments=("--backend-directory", str(backend.parent)),
        environment=environment,
        cache_directory=triton / "caches",
    )


def _environment(scratch: Path, libraries: tuple[Path, ...]) -> dict[str, str]:
    """Where a stub finds this interpreter, its site-packages, and `mplug` of this checkout.

    A stub embeds Python and looks for itself as `python3` on the PATH: the first one found decides which
    virtual environment the served models see.
    """
    environment = {"PATH": os.defpath} | os.environ
    programs = Path(sys.executable).parent
    beside = programs / "python3"
    if not beside.exists() or beside.resolve() != Path(sys.executable).resolve():
        # For example Debian's /usr/bin/python3.11 where python3 is another version.
        programs = scratch / "bin"
        programs.mkdir()
        (programs / "python3").symlink_to(sys.executable)
    _prepend(environment, "PATH", programs)
    _prepend(environment, "PYTHONPATH", CHECKOUT)
    environment.pop("PYTHONHOME", None)

    library = _libpython()
    if library is not None:
        # A folder with this one library: the rest of the interpreter's lib folder (conda's libstdc++, say) is
        # nothing that tritonserver should pick up.
        folder = scratch / "lib"
        folder.mkdir()
        (folder / LIBPYTHON).symlink_to(library)
        libraries = (folder, *libraries)
    for library_folder in reversed(libraries):
        _prepend(environment, "LD_LIBRARY_PATH", library_folder)

    threads = environment.get("MPLUG_THREADS")
    if threads:
        environment.setdefault("OMP_NUM_THREADS", threads)
    # numpy's own thread pool, one per stub, would fight the compiled stages for the cores.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment


def _prepend(environment: dict[str, str], variable: str, folder: Path) -> None:
    rest = environment.get(variable)
    environment[variable] = f"{folder}{os.pathsep}{rest}" if rest else str(folder)


def _libpython() -> Path | None:
    """The shared library of this very interpreter, or None where it was built without one.

    sysconfig's LIBDIR is right for pyenv, conda and distributions; relocated builds (uv's) have it below
    their prefix.
    """
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"):
        if folder and (Path(folder) / LIBPYTHON).exists():
            return Path(folder) / LIBPYTHON
    return None


def _help(executable: Path, environment: dict[str, str]) -> str:
    """The options that an executable lists; empty where it cannot be run, which its start then reports."""
    try:
        done = subprocess.run([executable, "--help"], env=environment, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _linked(executable: Path, environment: dict[str, str] | None = None) -> str:
    """What the loader says of an executable's libraries; empty where there is no `ldd`."""
    loader = shutil.which("ldd")
    if loader is None:
        return ""
    return subprocess.run([loader, executable], env=environment, capture_output=True, text=True).stdout


def _require_libraries(executables: tuple[Path, ...], environment: dict[str, str]) -> None:
    missing = sorted(
        {name for path in executables for name in re.findall(r"(\S+) => not found", _linked(path, environment))}
    )
    if missing:
        packages = [PACKAGE_OF_LIBRARY[name] for name in missing if name in PACKAGE_OF_LIBRARY]
        advice = f"; on Debian or Ubuntu: apt-get install {' '.join(packages)}" if packages else ""
        raise ServerError(f"tritonserver needs shared libraries that are missing: {', '.join(missing)}{advice}")


def _require_same_python(stub: Path) -> None:
    """An installed server's stub is linked to one Python version and cannot import another's packages."""
    match = re.search(r"libpython(3\.\d+)\.so", _linked(stub))
    if match and match.group(1) != PYTHON:
        raise ServerError(
            f"the tritonserver at {stub.parents[2]} runs models on Python {match.group(1)}, "
            f"this is Python {PYTHON}: run python{match.group(1)} -m mplug.server, "
            "or choose NVIDIA's wheel with --tritonserver wheel"
        )
