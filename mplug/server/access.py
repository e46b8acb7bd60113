"""Which of tritonserver's APIs are closed, and the keys that open them.

Inference, metadata, health and metrics are open. The rest lets a caller change the server or read other clients'
memory: each request to it must carry a header with a key, drawn anew for each server. The launcher keeps one key for
itself; with `--allow-shared-memory` it writes a second one, which opens the shared-memory API alone, to files that only
this user reads, one for each port. Who may read the command lines of this user's processes can read the keys there,
too: tritonserver takes them in no other way.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from mplug.server.install import ServerError

RESTRICTED = ("model-config", "model-repository", "statistics", "trace", "logging")
SHARED_MEMORY = "shared-memory"
ADMIN_HEADER = "mplug-admin-key"
SHARED_MEMORY_HEADER = "mplug-shared-memory-key"
GRPC_PREFIX = "triton-grpc-protocol-"  # tritonserver puts it before the header's name over gRPC
KEY_BYTES = 32


class AccessKeys:
    """The keys of one server. `shared_memory`: clients of this user may use the shared-memory API."""

    def __init__(self, shared_memory: bool) -> None:
        self._shared_memory = shared_memory
        self._admin_key = secrets.token_urlsafe(KEY_BYTES)
        self._shared_memory_key = secrets.token_urlsafe(KEY_BYTES)
        self._files: list[Path] = []

    def arguments(self) -> list[str]:
        """Return tritonserver's flags that close the APIs, over both protocols."""
        groups = (
            (",".join(RESTRICTED), ADMIN_HEADER, self._admin_key),
            (SHARED_MEMORY, SHARED_MEMORY_HEADER, self._shared_memory_key),
        )
        return [
            f"--{flag}={apis}:{header}={key}"
            for flag in ("http-restricted-api", "grpc-restricted-protocol")
            for apis, header, key in groups
        ]

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that open everything but shared memory."""
        return {ADMIN_HEADER: self._admin_key}

    @property
    def grpc_headers(self) -> dict[str, str]:
        """The same over gRPC, as metadata."""
        return {f"{GRPC_PREFIX}{ADMIN_HEADER}": self._admin_key}

    def hand_out(self, ports: tuple[int, ...]) -> None:
        """Write the shared-memory key to a file for each port, mode 0600, where clients look for it.

        Does nothing unless shared memory is allowed. Raises ServerError when the directory is another user's, and
        OSError when a file cannot be written.
        """
        if not self._shared_memory:
            return
        directory = key_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ServerError(
                f"{directory} is not a directory of this user alone (mode 0700): "
                "remove it, or set XDG_RUNTIME_DIR to a directory of yours"
            )
        for port in ports:
            path = directory / f"{port}.key"
            path.unlink(missing_ok=True)  # of a server that was killed
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(self._shared_memory_key)
            self._files.append(path)

    @property
    def files(self) -> list[Path]:
        """The files that hold the shared-memory key at the moment."""
        return list(self._files)

    def take_back(self) -> None:
        """Remove the files; safe to call again."""
        while self._files:
            self._files.pop().unlink(missing_ok=True)


def key_directory() -> Path:
    """Return where the keys of this user's servers are, as `clients.shared_memory` finds them."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"mplug-{os.getuid()}"
