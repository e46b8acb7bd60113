"""Files that commands write: made beside their place and moved there when whole; what is not ours is kept."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from clients.client import ClientError


def check_output(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raise ClientError unless a file may be written: there is none, an empty one, or an earlier one of the command.

    `is_ours` judges a file that holds something; whatever it raises means no.
    """
    if not path.exists():
        if not path.parent.is_dir():
            raise ClientError(f"{path} cannot be written: No such file or directory", "UNREADABLE")
        return
    if not path.is_file():
        raise ClientError(f"{path} cannot be written: it is not a regular file", "UNREADABLE")
    if path.stat().st_size == 0:
        return
    try:
        ours = is_ours(path)
    except Exception:  # readers raise about anything on a file of another kind
        ours = False
    if not ours:
        raise ClientError(f"{path} was not written by this command: give another file, this one is kept")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside a path and move it there at the end; where anything fails, the old one stays.

    Raises ClientError when it cannot be written.
    """
    try:
        target = path.resolve()  # a link stays one
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise ClientError(f"{path} cannot be written: {error.strerror}", "UNREADABLE") from error
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
        os.replace(name, target)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ClientError(f"{path} cannot be written: {error.strerror or error}", "UNREADABLE") from error
        raise


def _umask() -> int:
    """Return the process's mask, which the system tells only when it is set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
