"""The index of pictures on disk: exact neighbours, and nothing lost or mixed whoever interrupts it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clients.client.calls import ClientError
from clients.retrieval_index import Index, IndexInTheMaking, Picture

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
    making = IndexInTheMaking(path, photos, probe)
    for number, name in enumerate(names):
        if not making.is_known(picture(name)):
            making.add(picture(name), FEATURES[number])
    if finish:
        making.finish(names)
    making.close()


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
    with pytest.raises(ClientError, match="its making was interrupted: index the folder again"):
        Index.read(path)
    with (path / "journal.jsonl").open("a") as file:
        file.write('{"path": "c", "size": 1')  # killed in the middle of a line
    making = IndexInTheMaking(path, photos, PROBE)
    assert [making.is_known(picture(name)) for name in "abc"] == [True, True, False]
    making.add(picture("c"), FEATURES[2])
    making.finish(["a", "b", "c"])
    making.close()
    index = Index.read(path)
    assert [each.path for each in index.pictures] == ["a", "b", "c"]
    np.testing.assert_array_equal(index.features.reconstruct_n(0, 3), FEATURES[:3])


def test_what_changed_is_asked_again_and_what_has_gone_is_dropped(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a", "b", "c"])
    making = IndexInTheMaking(path, photos, PROBE)
    assert making.is_known(picture("a")) and not making.is_known(picture("b", modified=8))
    assert not making.is_known(Picture("c", 11, 7))
    making.add(picture("b", modified=8), FEATURES[9])
    making.refuse(picture("d"), "empty")
    assert making.is_known(picture("d")) and not making.is_known(picture("d", modified=8))
    index = making.finish(["a", "b", "d"])
    making.close()
    assert [each.path for each in index.pictures] == ["a", "b"]
    assert [(each.path, each.reason) for each in Index.read(path).refused] == [("d", "empty")]
    again = Index.read(path)
    np.testing.assert_array_equal(again.features.reconstruct_n(0, 2), FEATURES[[0, 9]])
    assert {each.suffix for each in path.iterdir()} == {".json", ".faiss", ".jsonl"}
    assert len(list(path.iterdir())) == 3  # neither a journal nor an old generation


def test_an_index_that_is_as_it_should_be_is_not_written_again(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a", "b"])
    before = {each.name: each.stat().st_mtime_ns for each in path.iterdir()}
    fill(path, photos, ["a", "b"])
    assert before == {each.name: each.stat().st_mtime_ns for each in path.iterdir()}


def test_readers_see_the_old_index_while_a_new_one_is_made(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    fill(path, photos, ["a"])
    fill(path, photos, ["a", "b"], finish=False)
    assert [each.path for each in Index.read(path).pictures] == ["a"]


def test_two_do_not_make_one_index(tmp_path: Path, photos: Path) -> None:
    making = IndexInTheMaking(tmp_path / "index", photos, PROBE)
    with pytest.raises(ClientError, match="is being written by another process"):
        IndexInTheMaking(tmp_path / "index", photos, PROBE)
    making.close()


@pytest.mark.parametrize("finish", [True, False])
def test_folders_and_checkpoints_are_not_mixed(tmp_path: Path, photos: Path, finish: bool) -> None:
    path, other = tmp_path / "index", tmp_path / "other"
    other.mkdir()
    fill(path, photos, ["a"], finish=finish)
    with pytest.raises(ClientError, match=f"index is an index of {photos}: give another --output"):
        IndexInTheMaking(path, other, PROBE)
    for probe in (unit(PROBE + 0.1), PROBE[:8]):
        with pytest.raises(ClientError, match="was made by another checkpoint than the server's"):
            IndexInTheMaking(path, photos, probe)
    if finish:
        Index.read(path).check_probe(unit(PROBE + 0.001), path)  # another precision
        with pytest.raises(ClientError, match="was made by another checkpoint"):
            Index.read(path).check_probe(-PROBE, path)
    photos.rename(tmp_path / "moved")  # the same pictures elsewhere
    making = IndexInTheMaking(path, tmp_path / "moved", PROBE)
    assert making.is_known(picture("a"))
    making.close()


def test_damage_is_told(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "index"
    with pytest.raises(ClientError, match="no index there"):
        Index.read(path)
    fill(path, photos, ["a", "b"])
    manifest = json.loads((path / "index.json").read_text())
    features = path / manifest["features"]
    whole = features.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"nonsense" * 20):
        features.write_bytes(damage)
        with pytest.raises(ClientError, match=r"the index is damaged .* remove it") as caught:
            Index.read(path)
        assert "\n" not in str(caught.value)
    features.write_bytes(whole)
    lines = (path / manifest["pictures"]).read_text().splitlines()
    (path / manifest["pictures"]).write_text(lines[0] + "\n")
    with pytest.raises(ClientError, match=r"damaged \(2 features of 16 numbers for 1 pictures\)"):
        Index.read(path)
    (path / "index.json").write_text('{"format": 2}')
    with pytest.raises(ClientError, match="format 2, but this reads 1"):
        Index.read(path)
    (path / "index.json").write_text("[")
    with pytest.raises(ClientError, match="damaged"):
        Index.read(path)
