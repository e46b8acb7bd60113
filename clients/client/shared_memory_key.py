"""The key that a server with `--allow-shared-memory` hands to the clients of its user, through a file of each port."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from .errors import ClientError

#: Names the file in place of the one that belongs to the server's port.
KEY_FILE_VARIABLE = "MPLUG_SHARED_MEMORY_KEY_FILE"
_HEADER = "mplug-shared-memory-key"
_GRPC_PREFIX = "triton-grpc-protocol-"  # Triton puts it before the header's name over gRPC
_LONGEST_KEY = 256  # characters


def key_directory() -> Path:
    """Return where a server of this user writes its key files."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"mplug-{os.getuid()}"


def headers(protocol: Literal["grpc", "http"], port: int, file: str | os.PathLike[str] | None) -> dict[str, str]:
    """Return the header that opens the server's shared-memory API; none where its port has no key file.

    `file`: the key file, by default the one that the environment names, else the one of the port. A server that
    restricts nothing needs no key. Raises ClientError when a file that was named cannot be read, and when a key file
    belongs to another user or can be read by others: it may be anything then.
    """
    named = file or os.environ.get(KEY_FILE_VARIABLE)
    path = Path(named) if named else key_directory() / f"{port}.key"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if not named and isinstance(error, FileNotFoundError):
            return {}
        raise ClientError(f"the shared-memory key {path} cannot be read: {error.strerror}", "UNREADABLE") from error
    with os.fdopen(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ClientError(
                f"the shared-memory key {path} is not a file that this user alone may read (mode 0600)", "UNREADABLE"
            )
        key = opened.read(_LONGEST_KEY + 1).strip()
    if not key.isascii() or not key.decode().isprintable() or not 0 < len(key) <= _LONGEST_KEY:
        raise ClientError(f"{path} holds no shared-memory key", "UNREADABLE")
    prefix = _GRPC_PREFIX if protocol == "grpc" else ""
    return {f"{prefix}{_HEADER}": key.decode()}
