"""What commands write: whole or not at all, and never over what somebody else made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clients import embed, ground, result_page
from clients.client import ClientError, Grounding
from clients.outputs import check_output, replacing

FEATURE = np.array([0.6, 0.8], np.float32)
Capture = pytest.CaptureFixture[str]


class Server:
    """In place of `Client`: every embedding and every box is the same."""

    def __init__(self, **_: object) -> None:
        pass

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def embed_text(self, text: str) -> np.ndarray:
        return FEATURE

    def ground(self, image: object, expression: str) -> Grounding:
        return Grounding((2, 2, 9, 9), [1, 2, 3, 4])


@pytest.fixture(autouse=True)
def answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.command_line.Client", Server)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def write_embeddings(path: Path, folder: Path) -> int:
    return embed.main(["--texts", "a", "b", "--output", str(path)])


def write_boxes(path: Path, folder: Path) -> int:
    return ground.main([str(folder / "picture.png"), "it", "--output", str(path)])


def write_page(path: Path, folder: Path) -> int:
    result_page.check(path)
    result_page.write(path, "query", [result_page.Shown("a", "b")])
    return 0


COMMANDS: list[tuple[str, Callable[[Path, Path], int]]] = [
    ("out.npy", write_embeddings),
    ("out.json", write_embeddings),
    ("out.png", write_boxes),
    ("out.jpg", write_boxes),
    ("out.tif", write_boxes),
    ("out.webp", write_boxes),
    ("out.html", write_page),
]


def outcome(write: Callable[[Path, Path], int], path: Path, folder: Path, capsys: Capture) -> tuple[int, str]:
    try:
        return write(path, folder), capsys.readouterr().err
    except ClientError as error:
        return 1, f"error: {error}\n"


@pytest.mark.parametrize(("name", "write"), COMMANDS)
def test_what_a_command_wrote_it_writes_again(
    name: str, write: Callable[[Path, Path], int], tmp_path: Path, picture: Path, capsys: Capture
) -> None:
    path = tmp_path / name
    path.touch(mode=0o640)  # empty, as mktemp makes one
    for _ in range(2):
        assert outcome(write, path, tmp_path, capsys) == (0, "")
        assert path.stat().st_size > 0 and path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == sorted([name, picture.name])
    if name == "out.npy":
        np.testing.assert_array_equal(np.load(path), [FEATURE, FEATURE])


@pytest.mark.parametrize(("name", "write"), COMMANDS)
def test_what_others_made_is_kept(
    name: str, write: Callable[[Path, Path], int], tmp_path: Path, picture: Path, capsys: Capture
) -> None:
    path, random = tmp_path / name, np.random.default_rng(0)
    np.save(tmp_path / "numbers.npy", np.arange(10))
    np.save(tmp_path / "table.npy", np.ones((3, 4), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "photo.jpg")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "photo.webp")
    contents = [
        *(each.read_bytes() for each in sorted(tmp_path.iterdir())),
        b'{"notes": [1, 2]}',
        b'[{"image": "a.png", "feature": [3, 4]}]',
        b'[{"image": "a.png", "caption": "a dog"}]',
        b"[]",
        b"<!doctype html>\n<html><body>mine</body></html>\n",
        b"hello",
        b"\n",
        *(random.bytes(int(size)) for size in random.integers(1, 500, 40)),
    ]
    for content in contents:
        path.write_bytes(content)
        code, said = outcome(write, path, tmp_path, capsys)
        assert code == 1 and said == (
            f"error: {path} was not written by this command: give another file, this one is kept\n"
        )
        assert path.read_bytes() == content


@pytest.mark.parametrize(("name", "write"), COMMANDS)
def test_what_cannot_be_written_is_one_line(
    name: str, write: Callable[[Path, Path], int], tmp_path: Path, picture: Path, capsys: Capture
) -> None:
    code, said = outcome(write, tmp_path / "absent" / name, tmp_path, capsys)
    assert code == 1 and said.count("\n") == 1 and f"absent/{name} cannot be written" in said
    os.mkfifo(tmp_path / name)
    code, said = outcome(write, tmp_path / name, tmp_path, capsys)
    assert code == 1 and said.count("\n") == 1 and "is not a regular file" in said


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    for error, raised in ((OSError(28, "No space left on device"), ClientError), (ValueError("x"), ValueError)):
        with pytest.raises(raised), replacing(path) as file:
            file.write(b"half of it")
            raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    link = tmp_path / "link"
    link.symlink_to(path)
    with replacing(link) as file:
        file.write(b"new")
    assert link.is_symlink() and path.read_text() == "new"


def test_a_reader_that_fails_means_no(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ClientError, match="was not written by this command"):
        check_output(tmp_path / "file", lambda path: json.loads(path.read_text()))


def test_a_picture_too_large_for_its_format(tmp_path: Path, capsys: Capture) -> None:
    Image.new("1", (17_000, 4)).save(tmp_path / "picture.png")
    assert write_boxes(tmp_path / "out.webp", tmp_path) == 1  # WebP has at most 16,383 a side
    assert "out.webp" in capsys.readouterr().err and os.listdir(tmp_path) == ["picture.png"]
