"""Packages of artwork, fetched from the registries that publish them: npm through ``npm pack``, Debian through apt.

Nothing is installed: a package is downloaded into a folder, unpacked in memory, and what was asked for is returned.
"""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

OPENCLIPART = "usr/share/openclipart/svg/"  # where Debian's openclipart-svg keeps its drawings


@dataclass(frozen=True)
class StyleSource:
    """Where the drawings of one style come from. ``vendor`` is its name in ``classes.json``."""

    package: str
    version: str
    vendor: str
    committed: bool = True  # share-alike art may be fetched, but is not redistributed here
    folder: str = ""  # a Debian package's folder of drawings; empty for npm packages

    def fetch(self, folder: Path, names: Collection[str] | None = None) -> dict[str, bytes]:
        """Download the package into ``folder``; return its files, or those of ``names``, ``{path: content}``."""
        if self.folder:
            return fetch_debian(self.package, self.version, folder, self.folder, names)
        return fetch_npm(self.package, self.version, folder)


def fetch_npm(package: str, version: str, folder: Path) -> dict[str, bytes]:
    """Download one npm package with ``npm pack`` and return its files, ``{path: content}``.

    Raises ``RuntimeError`` with npm's message when the download fails.
    """
    command = ["npm", "pack", f"{package}@{version}", "--silent", "--pack-destination", str(folder)]
    archive = folder / _output_of(command, folder).decode().strip().splitlines()[-1]
    with tarfile.open(archive) as tar:
        return _contents(tar, "package/", None)


def fetch_debian(
    package: str, version: str | None, folder: Path, inside: str, names: Collection[str] | None = None
) -> dict[str, bytes]:
    """Return the files of a Debian package that lie under ``inside``, ``{path below it: content}``.

    ``names``: these files alone. ``version``: exactly this one; without it, what apt's sources offer. A
    ``PACKAGE_*.deb`` that lies in ``folder`` already is used as it is; otherwise ``apt-get download`` fetches it
    there. Needs ``apt-get`` for that and ``dpkg-deb``; raises ``RuntimeError`` with what they say when they fail.
    """
    if not list(folder.glob(f"{package}_*.deb")):
        _output_of(["apt-get", "download", package if version is None else f"{package}={version}"], folder)
    archive = sorted(folder.glob(f"{package}_*.deb"))[-1]
    unpacked = ["dpkg-deb", "--fsys-tarfile", str(archive.resolve())]
    with subprocess.Popen(unpacked, stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            found = _contents(tar, inside, names)
        process.stdout.read()  # what follows the archive's end, so that dpkg-deb is not cut off
    if process.returncode:
        raise RuntimeError(f"`{' '.join(unpacked)}` failed with exit code {process.returncode}")
    return found


def _output_of(command: list[str], folder: Path) -> bytes:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"`{' '.join(command)}` failed: there is no {command[0]} on this machine") from None
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.decode().strip()}")
    return done.stdout


def _contents(tar: tarfile.TarFile, inside: str, names: Collection[str] | None) -> dict[str, bytes]:
    found = {}
    for member in tar:
        path = member.name.removeprefix("./")
        name = path.removeprefix(inside)
        if member.isfile() and path.startswith(inside) and (names is None or name in names):
            found[name] = tar.extractfile(member).read()
    return found
