"""`builders/fetch.py`: official places, and whether a download is whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from builders import fetch

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "parity" / "data" / "caption"
FILES = ("config.yaml", "config_bert.json", "vocab.txt", "pytorch_model.bin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A download without hashes stated, as from ModelScope."""
    found = tmp_path / "download"
    found.mkdir()
    for name in FILES:
        shutil.copy(GOLDEN / name, found / name)
    (found / ".msc").write_bytes(b"a pickle")
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert fetch.main(list(map(str, arguments))) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1, printed
    return printed


def test_the_official_places(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Are named, and not asked."""
    monkeypatch.setattr(socket, "socket", None)
    assert fetch.main([]) == 0
    printed = capsys.readouterr().out
    assert "  iic/mplug_visual-question-answering_coco_large_en  large  English  visual question answering\n" in printed
    assert "https://alice-open.oss-cn-zhangjiakou.aliyuncs.com/mPLUG/:\n  mplug_base.pth" in printed
    assert "this command and the server fetch nothing" in printed


def test_a_whole_download(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(FILES)
    for line, name in zip(lines, sorted(FILES), strict=True):
        content = (GOLDEN / name).read_bytes()
        assert line == (
            f"{hashlib.sha256(content).hexdigest()}  {name}  {len(content):,} bytes  "
            "(no source states a hash: computed here)"
        )


def test_a_record_is_what_sha256sum_reads(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sums = tmp_path / "SHA256SUMS"
    assert fetch.main([str(folder), "--record", str(sums)]) == 0
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", sums], cwd=folder, check=True)
    capsys.readouterr()
    assert fetch.main([str(folder), "--sums", str(sums)]) == 0
    assert capsys.readouterr().out.count(f"(as {sums} states)") == len(FILES)
    with (folder / "vocab.txt").open("a") as stream:
        stream.write("more\n")
    assert re.search(
        r"vocab.txt: has the hash \w{64} where .*SHA256SUMS states \w{64}", refused(capsys, folder, "--sums", sums)
    )
    shutil.copy(GOLDEN / "vocab.txt", folder)
    (folder / "config.yaml").unlink()
    assert "config.yaml: is in" in refused(capsys, folder, "--sums", sums)


def test_the_hash_that_hugging_face_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SHA-256 of a large file, Git's SHA-1 of a small one, in its cache and beside a local folder."""
    model = tmp_path / "models--someone--mplug"
    snapshot, blobs = model / "snapshots" / ("a" * 40), model / "blobs"
    local = tmp_path / "local"
    metadata = local / ".cache" / "huggingface" / "download"
    for path in (snapshot, blobs, metadata):
        path.mkdir(parents=True)
    for name in FILES:
        content = (GOLDEN / name).read_bytes()
        git = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
        etag = hashlib.sha256(content).hexdigest() if name.endswith(".bin") else git.stdout.decode().strip()
        (blobs / etag).write_bytes(content)
        (snapshot / name).symlink_to(blobs / etag)
        (local / name).write_bytes(content)
        (metadata / f"{name}.metadata").write_text(f"{'a' * 40}\n{etag}\n1764000000.0\n")
    for download in (model, local):
        assert fetch.main([str(download)]) == 0
        assert capsys.readouterr().out.count("(as Hugging Face states)") == len(FILES)
    for name in ("vocab.txt", "pytorch_model.bin"):
        whole = (GOLDEN / name).read_bytes()
        (local / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert f"{name}: has the hash" in refused(capsys, local)
        (local / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        ("config.yaml", b"<!doctype html><title>404</title>", "is a web page"),
        ("pytorch_model.bin", b"PK\x03\x04 and no more", "ends too early, after 16 bytes"),
        ("vocab.txt", b"", "is empty"),
    ],
)
def test_broken_files(folder: Path, name: str, content: bytes, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).write_bytes(content)
    record = folder.parent / "sums"
    printed = refused(capsys, folder, "--record", record)
    assert f"{folder / name}: " in printed and told in printed
    assert not record.exists()


def test_what_cannot_be_checked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent: no such file or folder" in refused(capsys, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "empty: holds no files" in refused(capsys, tmp_path / "empty")
    (tmp_path / "sums").write_text("MD5 (a) = 0\n")
    assert "sums, line 1: is not a SHA-256 and a name" in refused(capsys, folder, "--sums", tmp_path / "sums")
    assert "No such file" in refused(capsys, folder, "--sums", tmp_path / "no sums")
    (tmp_path / "vocab.txt").write_text("another")
    assert "give one checkpoint at a time" in refused(capsys, folder, tmp_path / "vocab.txt")


def test_it_needs_the_standard_library_alone() -> None:
    """So that the package without extras has it."""
    code = "import sys\nimport builders.fetch\nprint(sorted({'torch', 'numpy', 'yaml', 'tqdm'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"
