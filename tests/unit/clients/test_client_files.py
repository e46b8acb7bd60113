"""What the clients do with files: journals that survive a kill, folders with anything in them, drawing, pages."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clients import ground, pictures, result_page
from clients.client import ENTAILMENT_LABELS, ClientError, calls, images
from clients.journal import Journal
from mplug import contract
from mplug.inputs.images import IMAGE_FORMATS, MAX_IMAGE_PIXELS
from mplug.inputs.video import MAX_VIDEO_BYTES

ROOT = Path(__file__).parents[3]


def test_numbers_that_clients_repeat_are_the_servers() -> None:
    """Clients import nothing of the server, so these stand twice."""
    assert images.MAX_FILE_BYTES == MAX_VIDEO_BYTES
    assert images.MAX_PIXELS == MAX_IMAGE_PIXELS
    assert images.FORMATS == IMAGE_FORMATS
    assert ENTAILMENT_LABELS == contract.ENTAILMENT_LABELS
    Image.init()
    taken = {suffix for suffix, name in Image.EXTENSION.items() if name in IMAGE_FORMATS}
    assert taken >= pictures.SUFFIXES


def test_a_larger_file_than_the_server_takes_is_not_read(tmp_path: Path) -> None:
    at_limit, beyond = tmp_path / "at.png", tmp_path / "beyond.png"
    for path, size in ((at_limit, images.MAX_FILE_BYTES), (beyond, images.MAX_FILE_BYTES + 1)):
        with path.open("wb") as file:
            file.truncate(size)
    assert len(calls.caption(at_limit).inputs["IMAGE"][0]) == images.MAX_FILE_BYTES
    with pytest.raises(ClientError, match=f"{beyond} cannot be read: it has more than 64 MiB") as caught:
        calls.caption(beyond)
    assert caught.value.status == "UNREADABLE"


# --------------------------------------------------------------------------------------------- journal


HEADER = '{"format": "mplug-batch", "version": 1}\n'


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        assert journal.entries == []
        journal.append({"image": "a\udcff", "n": 1})
        assert path.read_text() == HEADER + '{"image": "a\\udcff", "n": 1}\n'
    with Journal(path) as journal:
        assert journal.entries == [{"image": "a\udcff", "n": 1}]
        journal.append({"n": 2})
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("torn", ["{", '{"', '{"n": 2', '{"n": 2}', "\0\0\0"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "journal"
    path.write_text(HEADER + '{"n": 1}\n' + torn)
    with Journal(path) as journal:
        assert journal.entries == [{"n": 1}]
        journal.append({"n": 3})
    assert path.read_text() == HEADER + '{"n": 1}\n{"n": 3}\n'


FOREIGN = {
    "a table": b"image,question\na.png,b\n",
    "a text": b"hello",
    "a picture": b"\xff\xd8\xff\xe0",
    "JSON in one line": b'{"notes": ["a", "b"]}',
    "JSON in one line, ended": b'{"notes": ["a", "b"]}\n',
    "JSON lines": b'{"n": 1}\n{"n": 2}\n',
    "JSON lines whose last is torn": b'{"n": 1}\n{"n": 2',
    "JSON lines of pictures": b'{"image": "a.png", "captions": []}\n{"image": "b.png", "captions": []}\n',
    "JSON lines that fail": b'{"image": "a.png", "error": "x"}\n',
    "a brace": b"{",
    "a line end": b"\n",
    "our header, with blanks": b' {"format": "mplug-batch", "version": 1}\n',
    "our header, torn": HEADER[:20].encode(),
    "another version": b'{"format": "mplug-batch", "version": 2}\n',
}


@pytest.mark.parametrize("kind", list(FOREIGN))
def test_a_file_of_somebody_else_is_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(ClientError, match=r"precious was not written by this command .* this one is kept"):
        Journal(path)
    assert path.read_bytes() == FOREIGN[kind] and os.listdir(tmp_path) == ["precious"]


def test_any_file_of_somebody_else_is_kept(tmp_path: Path) -> None:
    path, random = tmp_path / "precious", np.random.default_rng(0)
    pieces = [HEADER.encode(), b'{"image": "a"}\n', b"{", b'"', b"\n", b"\0", b"\xff", b"[1]", b"}"]
    kept = 0
    for _ in range(300):
        content = b"".join(pieces[each] for each in random.integers(0, len(pieces), random.integers(1, 6)))
        path.write_bytes(content)
        try:
            with Journal(path) as journal:
                assert content.startswith(HEADER.encode())  # nothing else is taken for ours
                assert path.read_bytes() == content[: content.rindex(b"\n") + 1]
                assert len(journal.entries) == path.read_bytes().count(b"\n") - 1
        except ClientError:
            assert path.read_bytes() == content
            kept += 1
    assert 100 < kept < 300


def test_lines_that_are_not_ours_behind_our_header_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text(HEADER + '{"n": 1}\n[2]\n{"n": 3}\n')
    with pytest.raises(ClientError, match="precious line 3 is not a JSON object: give another file, this one is kept"):
        Journal(path)
    assert path.read_text() == HEADER + '{"n": 1}\n[2]\n{"n": 3}\n'


def test_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        with pytest.raises(ClientError, match="is being written by another process"):
            Journal(path)
        journal.replace([{"n": 1}])
        with pytest.raises(ClientError, match="is being written by another process"):
            Journal(path)
        journal.append({"n": 2})
    assert [entry.get("n") for entry in map(json.loads, path.read_text().splitlines())] == [None, 1, 2]
    assert os.listdir(tmp_path) == ["journal"]
    with pytest.raises(ClientError, match="cannot be written: No such file"):
        Journal(tmp_path / "nowhere" / "journal")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ClientError, match="pipe cannot be written: it is not a regular file"):
        Journal(tmp_path / "pipe")


def test_replacing_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link, neighbour = tmp_path / "elsewhere" / "file", tmp_path / "link", tmp_path / ".link.new"
    neighbour.write_text("mine")
    link.symlink_to(target)
    target.touch(mode=0o640)
    with Journal(link) as journal:
        journal.replace([{"n": 1}])
    assert link.is_symlink() and target.read_text() == HEADER + '{"n": 1}\n'
    assert target.stat().st_mode & 0o777 == 0o640 and neighbour.read_text() == "mine"


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    program = (
        "import sys, pathlib; from clients.journal import Journal\n"
        "journal, n = Journal(pathlib.Path(sys.argv[1])), 0\n"
        "while True: journal.append({'n': n, 'text': 'x' * 3000}); n += 1"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while (not path.exists() or path.stat().st_size < 100_000) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    with Journal(path) as journal:
        numbers = [entry["n"] for entry in journal.entries]
    assert len(numbers) > 30 and numbers == list(range(len(numbers)))


# ------------------------------------------------------------------------------------------- pictures


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    names = ("b.png", "a.JPG", "sub/c.webp", "dir.png/d.gif", "notes.txt", ".hidden.png", ".git/e.png", "no_ending")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.png").symlink_to("/nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert pictures.in_folder(tmp_path) == ["a.JPG", "b.png", "dir.png/d.gif", "gone.png", "sub/c.webp"]
    (tmp_path / "film.MP4").touch()
    assert "film.MP4" not in pictures.in_folder(tmp_path)
    assert pictures.in_folder(tmp_path, videos=True)[3] == "film.MP4"
    with pytest.raises(ClientError, match="absent cannot be read: No such file"):
        pictures.in_folder(tmp_path / "absent")


def test_a_folder_below_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not hold root back, so the system's answer is made here."""
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.png").touch()
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert pictures.in_folder(tmp_path) == ["a.png", "locked"]
    with pytest.raises(ClientError, match="locked cannot be read: it is not a regular file"):
        pictures.check_file(tmp_path / "locked")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ClientError, match=r"pipe.png cannot be read: it is not a regular file"):
        pictures.check_file(tmp_path / "pipe.png")


def test_pictures_are_drawn_as_they_are_shown(tmp_path: Path) -> None:
    sideways = tmp_path / "sideways.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(sideways, exif=exif)
    assert images.as_shown(sideways).size == (20, 40)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert images.as_shown(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert images.as_shown(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    (tmp_path / "text.png").write_text("hello")
    for name, reason in (("text.png", "not a picture"), ("no.png", "No such file"), (".", "Is a directory")):
        with pytest.raises(ClientError, match=reason):
            images.as_shown(tmp_path / name)
    Image.new("1", (10_000, 6_401)).save(tmp_path / "huge.png")
    with pytest.raises(ClientError, match="10,000 × 6,401 pixels, more than 64,000,000"):
        images.as_shown(tmp_path / "huge.png")


def test_boxes_are_drawn_where_they_are() -> None:
    grey = Image.new("RGB", (200, 100), (128, 128, 128))
    drawn = ground.with_boxes(grey, [(20, 10, 120, 90), (0, 0, 200, 100), (50, 50, 50, 50)])
    assert grey.getpixel((20, 10)) == (128, 128, 128)  # a copy
    first, second = (0xE6, 0x19, 0x4B), (0x00, 0x82, 0xC8)
    for x, y in ((20, 40), (119, 40), (60, 10), (60, 89)):
        assert drawn.getpixel((x, y)) == first
    assert drawn.getpixel((18, 40)) == drawn.getpixel((22, 40)) == (128, 128, 128)
    assert drawn.getpixel((19, 40)) == drawn.getpixel((21, 40)) == (255, 255, 255)
    assert drawn.getpixel((0, 0)) == drawn.getpixel((199, 99)) == second
    assert drawn.getpixel((100, 40)) == (128, 128, 128)


def test_a_page_shows_everything_and_runs_nothing(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"' onerror=x & {braces}"
    picture = tmp_path / 'a"><b>.png'
    Image.new("RGB", (1000, 500), "red").save(picture)
    page = tmp_path / "page.html"
    shown = [
        result_page.Shown(str(picture), "score 1", str(picture)),
        result_page.Shown("absent", "", "/nowhere.png"),
        result_page.Shown(evil, evil),
    ]
    result_page.write(page, evil, shown, str(picture))
    text = page.read_text()
    assert "<script" not in text and "<b>" not in text and 'onerror="' not in text
    assert text.count("&lt;script&gt;") == 4  # the title, the heading, a name, a score
    assert text.count("{braces}") == 4
    assert text.count("data:image/jpeg;base64,") == 2 and text.count("cannot be read") == 1
    encoded = text.split("base64,")[1].split('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (320, 160)
    assert "http" not in text.replace("http-equiv", "")
