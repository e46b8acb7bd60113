"""The key that opens a server's shared memory to the clients of its user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clients.client import ClientError, shared_memory_key


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the server at port 8001, as `--allow-shared-memory` writes it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("MPLUG_SHARED_MEMORY_KEY_FILE", raising=False)
    path = tmp_path / f"mplug-{os.getuid()}" / "8001.key"
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    path.write_text("s3cret")
    return path


def test_the_key_of_a_port_is_found(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over_grpc = {"triton-grpc-protocol-mplug-shared-memory-key": "s3cret"}
    assert shared_memory_key.headers("grpc", 8001, None) == over_grpc
    assert shared_memory_key.headers("http", 8001, None) == {"mplug-shared-memory-key": "s3cret"}
    assert shared_memory_key.headers("grpc", 8002, None) == {}  # a server that restricts nothing
    assert shared_memory_key.headers("grpc", 8002, key) == over_grpc
    monkeypatch.setenv("MPLUG_SHARED_MEMORY_KEY_FILE", str(key))
    assert shared_memory_key.headers("grpc", 8002, None) == over_grpc
    with pytest.raises(ClientError, match="absent cannot be read: No such file"):
        shared_memory_key.headers("grpc", 8001, tmp_path / "absent")


@pytest.mark.parametrize("content", ["", " \n", "two\nlines", "é", "x" * 257, "nul\0"])
def test_what_is_no_key_is_not_sent(key: Path, content: str) -> None:
    key.write_text(content)
    with pytest.raises(ClientError, match=r"8001\.key holds no shared-memory key"):
        shared_memory_key.headers("grpc", 8001, None)


def test_a_file_of_somebody_else_is_not_sent(key: Path, tmp_path: Path) -> None:
    """Another user may have made the directory, and put a link to a secret of ours there."""
    key.chmod(0o644)
    with pytest.raises(ClientError, match="is not a file that this user alone may read"):
        shared_memory_key.headers("grpc", 8001, None)
    key.rename(tmp_path / "secret")
    (tmp_path / "secret").chmod(0o600)
    key.symlink_to(tmp_path / "secret")
    with pytest.raises(ClientError, match=r"8001\.key cannot be read"):
        shared_memory_key.headers("grpc", 8001, None)
    key.unlink()
    os.mkfifo(key, 0o600)
    with pytest.raises(ClientError, match="is not a file"):
        shared_memory_key.headers("grpc", 8001, None)
