"""The API key of a gateway: where it is read from, what is no key, and that no message says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.client import Client, ClientError, api_key, read_api_key

KEY = "correct-horse-battery-staple"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o640)
    return path


def test_a_key_is_read_from_a_file_or_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLUG_API_KEY", raising=False)
    assert read_api_key(file) == KEY
    assert api_key.api_key_headers(None) == {}
    monkeypatch.setenv("MPLUG_API_KEY", KEY)
    assert api_key.api_key_headers(None) == {"x-api-key": KEY}
    assert api_key.api_key_headers("another") == {"x-api-key": "another"}
    assert api_key.api_key_headers("") == {}  # none, whatever the environment says
    monkeypatch.setenv("MPLUG_API_KEY", "")
    assert api_key.api_key_headers(None) == {}


def test_a_file_that_is_open_to_everybody_is_refused(file: Path) -> None:
    for mode in (0o644, 0o602):
        file.chmod(mode)
        with pytest.raises(ClientError, match=f"is open to every user of this machine: chmod o= {file}"):
            read_api_key(file)
    with pytest.raises(ClientError, match="absent cannot be read: No such file"):
        read_api_key(file.parent / "absent")
    with pytest.raises(ClientError, match="cannot be read: Is a directory"):
        read_api_key(file.parent)


@pytest.mark.parametrize("content", ["", " \n", "two words", "two\nlines", "name\tkey", "é", "x" * 4097, "nul\0"])
def test_what_cannot_stand_in_a_header_is_refused(file: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(content)
    complaint = "is not one word of up to 4096 ASCII characters"
    with pytest.raises(ClientError, match=f"the API key file {file} {complaint}") as refused:
        read_api_key(file)
    assert not content.strip() or content.strip() not in str(refused.value)
    if content and "\0" not in content:
        monkeypatch.setenv("MPLUG_API_KEY", content)
        with pytest.raises(ClientError, match=rf"the API key in \$MPLUG_API_KEY {complaint}"):
            Client("localhost:9")
