"""Checkpoints as download tools leave them on the disk: Hugging Face's and ModelScope's caches, and broken downloads.

Hugging Face (huggingface_hub): `models--ORG--NAME/` holds `snapshots/COMMIT/`, whose files are symbolic links into
`blobs/`, where each file is named by its hash; `refs/main` holds the commit of the branch. ModelScope
(`FileSystemCache` in modelscope/hub/utils/caching.py): `models/ORG/NAME/` holds the files themselves beside `.mv`, the
revision as text, and `.msc` and `.mdl`, which are pickles and are never opened here. Nothing is fetched, no code runs,
and the standard library is enough.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
MAX_NAMED = 8
_PREFIX = "models--"
_MODELSCOPE_FILES = (".msc", ".mv", ".mdl")
_LFS_POINTER = b"version https://git-lfs"
_MARKUP = re.compile(rb"(<!doctype html|<html|<\?xml|<head|<error)", re.IGNORECASE)
_ZIP = b"PK\x03\x04"
_BEGINNING = 512  # bytes that tell what a file is


class CacheError(ValueError):
    """A folder of a download cannot be used; the message names it and what to do."""


@dataclass(frozen=True)
class Snapshot:
    """A folder that holds a checkpoint's files."""

    folder: Path
    name: str  #: as people name the checkpoint: `ORG/NAME@REVISION` from a cache, else the folder's own name


def find_snapshot(folder: Path) -> Snapshot:
    """Return the folder with the files of a checkpoint: of a cache the right snapshot, else the folder itself.

    Of `models--ORG--NAME` the snapshot that `refs/main` names, or the only one. Raises CacheError where several are
    possible, where a file is a link that leaves the cache, and where what it links to is missing.
    """
    if (folder / "snapshots").is_dir():
        folder = _current(folder)
    elif not any(folder.glob("*.y*ml")) and (choices := _models_below(folder)):
        raise CacheError(f"{folder}: is a cache of several models; name the folder of one: {_some(choices)}")
    place = folder.absolute()  # messages keep the path as it was given
    if place.parent.name == "snapshots":
        cache = place.parent.parent
        name = f"{cache.name.removeprefix(_PREFIX).replace('--', '/')}@{place.name[:12]}"
        _check_links(folder, cache)
        return Snapshot(folder, name)
    if any((folder / name).is_file() for name in _MODELSCOPE_FILES):
        _check_links(folder, folder)
        return Snapshot(folder, f"{place.parent.name}/{place.name}{_modelscope_revision(folder)}")
    return Snapshot(folder, place.name)


def _current(cache: Path) -> Path:
    reference = cache / "refs" / "main"
    snapshots = sorted(path for path in (cache / "snapshots").iterdir() if path.is_dir())
    if reference.is_file():
        commit = reference.read_text(encoding="ascii", errors="replace").strip()
        if not re.fullmatch(r"[\w.-]+", commit) or commit in (".", ".."):
            raise CacheError(f"{reference}: holds {commit[:40]!r}, not the name of a snapshot")
        current = cache / "snapshots" / commit
        if current not in snapshots:
            raise CacheError(f"{cache}: refs/main names the snapshot {commit}, which is missing; download it again")
        return current
    if len(snapshots) == 1:
        return snapshots[0]
    if not snapshots:
        raise CacheError(f"{cache}: holds no snapshot; the download did not finish, start it again")
    raise CacheError(f"{cache}: holds several snapshots and no refs/main; name one of them: {_some(snapshots)}")


def _models_below(folder: Path) -> list[Path]:
    """Return the models in the root of a cache, or in ModelScope's folder of an organisation."""
    hugging_face = [path for path in folder.glob(f"{_PREFIX}*") if path.is_dir()]
    depths = ("*", "*/*", "*/*/*")
    return sorted(hugging_face) or sorted(path.parent for depth in depths for path in folder.glob(f"{depth}/.msc"))


def _check_links(folder: Path, cache: Path) -> None:
    root = cache.resolve()
    for path in sorted(folder.iterdir()):
        if not path.is_symlink():
            continue
        target = path.resolve()
        if not target.is_relative_to(root):
            raise CacheError(f"{path}: is a link to {target}, outside the cache {root}; download the model again")
        if not target.exists():
            raise CacheError(
                f"{path}: links to {target}, which is missing; the download did not finish, start it again"
            )


def _modelscope_revision(folder: Path) -> str:
    """Return `@REVISION` of the text that ModelScope writes, `Revision:v1.0.1,CreatedAt:1666172087`."""
    path = folder / ".mv"
    found = re.match(r"Revision:([\w./-]{1,80})", path.read_text(errors="replace")) if path.is_file() else None
    return f"@{found[1]}" if found else ""


def _some(paths: list[Path]) -> str:
    names = ", ".join(str(path) for path in paths[:MAX_NAMED])
    return names + (f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else "")


def impostor(path: Path) -> str | None:
    """Return what a file is instead of what its name says, as the end of a sentence; None where it may be the file.

    Knows Git LFS pointers, and the pages and messages that a site answers in place of a file.
    """
    with path.open("rb") as stream:
        beginning = stream.read(_BEGINNING)
    if beginning.startswith(_LFS_POINTER):
        stated = re.search(rb"^size (\d+)$", beginning, re.MULTILINE)
        size = f" (it has {int(stated[1]):,} bytes)" if stated else ""
        return f"is a Git LFS pointer, not the weights; run: git lfs pull{size}"
    if _MARKUP.match(beginning.lstrip(b"\xef\xbb\xbf \t\r\n")):
        return "is a web page or a site's error message, not the file; download it again, signed in where needed"
    if path.suffix in WEIGHT_SUFFIXES and beginning.lstrip().startswith(b"{"):
        return "is a JSON message, not the weights; download it again"
    return None


def incomplete(path: Path) -> str | None:
    """Return why a file ends too early, as the end of a sentence; None where nothing says so.

    Safetensors state their size, and archives of PyTorch end with a directory; older files of PyTorch say neither.
    """
    size = path.stat().st_size
    if size == 0:
        return "is empty; download it again"
    if path.suffix == ".safetensors":
        return _short_safetensors(path, size)
    with path.open("rb") as stream:
        archive = stream.read(len(_ZIP)) == _ZIP
    if path.suffix in WEIGHT_SUFFIXES and archive and not zipfile.is_zipfile(path):
        return f"ends too early, after {size:,} bytes; download it again"
    return None


def _short_safetensors(path: Path, size: int) -> str | None:
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size:
            return f"ends too early, after {size:,} bytes; download it again"
        try:
            header = json.loads(stream.read(length))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return "has no header of safetensors; download it again"
    if 8 + length + end != size:
        return f"has {size:,} bytes where its header states {8 + length + end:,}; download it again"
    return None
