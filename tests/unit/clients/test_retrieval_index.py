"""The index of pictures on disk: exact neighbours, and nothing lost or mixed whoever interrupts it."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clients.client import ClientError
from clients.retrieval_index import Index, IndexWriter, Picture

ROOT = Path(__file__).parents[3]
RANDOM = np.random.default_rng(0)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


PROBE = unit(RANDOM.normal(size=16))
FEATURES = unit(RANDOM.normal(size=(500, 16)))


def picture(name: str, modified: int = 7) -> Picture:
    return Picture(name, 10, modified)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def fill(path: Path, photos: Path, names: list[str], *, finish: bool = True, probe: np.ndarray = PROBE) -> None:
    writer = IndexWriter(path, photos, probe)
    for number, name in enumerate(names):
        if not writer.is_known(picture(name)):
            writer.add(picture(name), FEATURES[number])
    if finish:
        writer.finish(names)
    writer.close()


def test_neighbours_are_exact(tmp_path: Path, photos: Path) -> None:
    names = [f"{number}.png" for number in range(len(FEATURES))]
    fill(tmp_path / "index", photos, names)
    index = Index.read(tmp_path / "index")
    query = unit(RANDOM.normal(size=16))
    best = np.argsort(-(FEATURES @ query))[:20]
    found = index.nearest(query, 20)
    assert [path for path, _ in found] == [str(photos / names[row]) for row in best]
    np.testing.assert_allclose([similarity for _, similarity in found], (FEATURES @ query)[best], atol=1e-6)
    assert len(index.nearest(query, 1000)) == len(FEATURES)


def test_an_empty_folder_has_an_index(tmp_path: Path, photos: Path) -> None:
    fill(tmp_path / "index", photos, [])
    assert Index.read(tmp_path / "index").nearest(PROBE, 5) == []


def test_what_was_embedded_before_an_interruption_is_known(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a", "b"], finish=False)
    with pytest.raises(ClientError, match="indexing was interrupted: index the folder again"):
        Index.read(path)
    writer = IndexWriter(path, photos, PROBE)
    assert [writer.is_known(picture(name)) for name in "abc"] == [True, True, False]
    writer.add(picture("c"), FEATURES[2])
    writer.finish(["a", "b", "c"])
    writer.close()
    index = Index.read(path)
    assert [each.path for each in index.pictures] == ["a", "b", "c"]
    np.testing.assert_array_equal(index.features, FEATURES[:3])


def test_what_changed_is_asked_again_and_what_has_gone_is_dropped(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a", "b", "c"])
    writer = IndexWriter(path, photos, PROBE)
    assert writer.is_known(picture("a")) and not writer.is_known(picture("b", modified=8))
    assert not writer.is_known(Picture("c", 11, 7))
    writer.add(picture("b", modified=8), FEATURES[9])
    writer.refuse(picture("d"), "empty")
    assert writer.is_known(picture("d")) and not writer.is_known(picture("d", modified=8))
    index = writer.finish(["a", "b", "d"])
    writer.close()
    assert [each.path for each in index.pictures] == ["a", "b"]
    assert [(each.path, each.reason) for each in Index.read(path).refused] == [("d", "empty")]
    again = Index.read(path)
    np.testing.assert_array_equal(again.features, FEATURES[[0, 9]])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["index", "photos"]  # nothing is left beside it


def test_an_index_that_is_as_it_should_be_is_not_written_again(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a", "b"])
    before = path.read_bytes(), path.stat().st_mtime_ns
    fill(path, photos, ["a", "b"])
    assert before == (path.read_bytes(), path.stat().st_mtime_ns)


def test_readers_see_the_old_index_while_a_new_one_is_made(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a"])
    fill(path, photos, ["a", "b"], finish=False)
    assert [each.path for each in Index.read(path).pictures] == ["a"]


def test_two_do_not_make_one_index(tmp_path: Path, photos: Path) -> None:
    writer = IndexWriter(tmp_path / "index", photos, PROBE)
    with pytest.raises(ClientError, match="is being written by another process"):
        IndexWriter(tmp_path / "index", photos, PROBE)
    writer.close()


@pytest.mark.parametrize("finish", [True, False])
def test_folders_and_checkpoints_are_not_mixed(tmp_path: Path, photos: Path, finish: bool) -> None:
    path, other = tmp_path / "index", tmp_path / "other"
    other.mkdir()
    fill(path, photos, ["a"], finish=finish)
    with pytest.raises(ClientError, match=f"index is an index of {photos}: give another --output"):
        IndexWriter(path, other, PROBE)
    for probe in (unit(PROBE + 0.1), PROBE[:8]):
        with pytest.raises(ClientError, match="was made by another checkpoint than the server's"):
            IndexWriter(path, photos, probe)
    if finish:
        Index.read(path).check_probe(unit(PROBE + 0.001), path)  # another precision
        with pytest.raises(ClientError, match="was made by another checkpoint"):
            Index.read(path).check_probe(-PROBE, path)
    photos.rename(tmp_path / "moved")  # the same pictures elsewhere
    writer = IndexWriter(path, tmp_path / "moved", PROBE)
    assert writer.is_known(picture("a"))
    writer.close()


def test_an_indexing_that_is_killed_goes_on(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["old"])
    program = (
        "import sys, os, signal, pathlib, numpy\n"
        "from clients.retrieval_index import IndexWriter, Picture\n"
        "probe = numpy.frombuffer(bytes.fromhex(sys.argv[3]), numpy.float32)\n"
        "writer = IndexWriter(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), probe)\n"
        "for n in range(30): writer.add(Picture(str(n), 10, 7), probe)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program, str(path), str(photos), PROBE.tobytes().hex()]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == -signal.SIGKILL
    assert [each.path for each in Index.read(path).pictures] == ["old"]
    writer = IndexWriter(path, photos, PROBE)
    assert all(writer.is_known(picture(str(n))) for n in range(30))
    names = sorted(str(n) for n in range(30))
    assert [each.path for each in writer.finish(names).pictures] == names
    writer.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["index", "photos"]


def test_damage_is_told(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    with pytest.raises(ClientError, match="no index there"):
        Index.read(path)
    fill(path, photos, ["a", "b"])
    whole = path.read_bytes()
    for damage in (whole[:5000], whole[:100] + b"nonsense" * 2000, whole[:4096] + bytes(len(whole) - 4096)):
        path.write_bytes(damage)
        with pytest.raises(ClientError, match=r"the index is damaged .* remove it") as caught:
            Index.read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            "UPDATE pictures SET path = CAST('../secret.png' AS BLOB) WHERE path = x'61'",
            "'../secret.png' is not a path",
        ),
        ("UPDATE pictures SET path = CAST('/etc/passwd' AS BLOB) WHERE path = x'61'", "'/etc/passwd' is not a path"),
        ("UPDATE pictures SET path = 'text' WHERE path = x'61'", "values of other types"),
        ("UPDATE pictures SET size = 'big'", "values of other types"),
        ("UPDATE pictures SET feature = zeroblob(32)", "a feature of 8 numbers where 16 are expected"),
        ("UPDATE pictures SET feature = zeroblob(3)", "buffer size"),
        ("UPDATE pictures SET feature = 5", "not stored as bytes"),
        ("DELETE FROM settings", "0 rows of settings"),
        ("DROP TABLE pictures", "no such table"),
        ("DROP TABLE pictures; CREATE VIEW pictures AS SELECT 1 AS path", "no such column"),
    ],
)
def test_a_forged_index_is_refused(tmp_path: Path, photos: Path, change: str, complaint: str) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a", "b"])
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(change)
    with pytest.raises(ClientError, match="the index is damaged") as caught:
        Index.read(path)
    assert complaint in str(caught.value)


def test_what_is_no_index_of_ours_is_kept(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "precious"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE pictures (path); INSERT INTO pictures VALUES ('a.png')")
    others = [path.read_bytes(), b"hello", b'{"format": 1}', b"SQLite format 3\0", (ROOT / "README.md").read_bytes()]
    for content in others:
        path.write_bytes(content)
        for attempt in (lambda: Index.read(path), lambda: IndexWriter(path, photos, PROBE)):
            with pytest.raises(ClientError, match="precious is not an index: give another file, this one is kept"):
                attempt()
        assert path.read_bytes() == content
    assert sorted(each.name for each in tmp_path.iterdir()) == ["photos", "precious"]


def test_a_folder_is_not_written_into(tmp_path: Path, photos: Path) -> None:
    """Neither the pictures' own, whatever its files are called, nor one of another program or an earlier version."""
    mine = {"pictures-2019.jsonl": "{}", "features-clip.faiss": "x", "journal.jsonl": "{}", "index.json": '["a"]'}
    for name, content in mine.items():
        (photos / name).write_text(content)
    for attempt in (lambda: Index.read(photos), lambda: IndexWriter(photos, photos, PROBE)):
        with pytest.raises(ClientError, match="is a directory, and an index is one file"):
            attempt()
    assert {each.name: each.read_text() for each in photos.iterdir()} == mine


def test_an_index_of_another_version_is_told(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a"])
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(ClientError, match="has format 9, this version reads 2: index the folder again"):
        Index.read(path)


def test_names_that_no_encoding_can_print(tmp_path: Path, photos: Path) -> None:
    fill(tmp_path / "index", photos, ["\udcff.png", "é.png"])
    assert sorted(each.path for each in Index.read(tmp_path / "index").pictures) == ["é.png", "\udcff.png"]


def test_an_index_that_nobody_may_write_is_read(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a"])
    path.chmod(0o400)
    assert [each.path for each in Index.read(path).pictures] == ["a"]
    path.chmod(0o600)
    (tmp_path / "empty").touch()  # as mktemp makes one
    fill(tmp_path / "empty", photos, ["a"])
    assert len(Index.read(tmp_path / "empty").pictures) == 1
