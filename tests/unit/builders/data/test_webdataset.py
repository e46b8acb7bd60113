"""WebDataset shards: every sample once an epoch, entered anywhere by any number of processes; faults are named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from shard_fixtures import picture, write_shards, write_tar

from builders.data.readers import webdataset
from builders.data.readers.records import DatasetError, PictureError, encoded, name_of, open_picture
from builders.data.readers.webdataset import Shards, ShardStream, find_shards
from builders.data.sources import SourceOptions, open_source

COUNTS = (5, 3, 7, 4, 6)  # 25 samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("shards")
    write_shards(found, COUNTS, stats=True)
    return found


def keys(stream: ShardStream, batches: range) -> list[str]:
    return [record.key for index in batches for record in stream.batch(index)]


def test_records_are_those_of_the_tars(folder):
    shards = Shards(find_shards(folder))
    assert len(shards) == 25 and [record.key for record in shards[4:6]] == ["00000/000000004", "00001/000010000"]
    record = shards[24]
    assert record.captions == ("picture 4 5",) and encoded(record.image) == picture(4005)
    assert name_of(record.image) == folder / "00004.tar/000040005.jpg"
    assert open_picture(record.image).size == (32, 32)
    assert len(Shards(find_shards(folder), 3)) == 3
    with pytest.raises(IndexError):
        shards[25]


def test_an_epoch_holds_every_sample_once_for_any_number_of_processes(folder, monkeypatch):
    monkeypatch.setattr(webdataset, "MIXED", 2)
    found = find_shards(folder)
    alone = ShardStream(Shards(found), 6, seed=3)
    first, second = (keys(alone, range(epoch * 4, epoch * 4 + 4)) for epoch in range(2))
    assert len(set(first)) == len(set(second)) == 24, "no sample twice in an epoch"
    assert first != second and first != sorted(first)
    for world in (2, 3):
        streams = [ShardStream(Shards(found), 6 // world, seed=3, rank=rank, world=world) for rank in range(world)]
        assert [key for index in range(8) for each in streams for key in keys(each, range(index, index + 1))] == (
            first + second
        )
    assert keys(ShardStream(Shards(found), 6, seed=3), range(6, 8)) == second[12:], "entered in the middle"
    assert keys(ShardStream(Shards(found), 6, seed=4), range(4)) != first
    with pytest.raises(ValueError, match="25 samples are fewer than a batch of 26"):
        ShardStream(Shards(found), 13, world=2)


def test_a_few_shards_are_known_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(webdataset, "MIXED", 2)
    stream = ShardStream(Shards(find_shards(folder)), 5)
    for index in range(10):
        stream.batch(index)
        assert len(stream.shards._open) <= 2 and len(stream._places) <= 13
    copied = pickle.loads(pickle.dumps(stream))  # as a loader's process gets it
    assert keys(copied, range(3)) == keys(stream, range(3))


def test_splits_are_folders_and_captions_may_stand_in_json(tmp_path):
    write_shards(tmp_path, [4])
    write_shards(tmp_path / "val", [2], text="other")
    members = [(f"a/{n}.JPG", picture(n)) for n in range(2)]
    captions = [(f"a/{n}.json", json.dumps({"caption": f"said {n}"}).encode()) for n in range(2)]
    write_tar(tmp_path / "val/00007.tar", [pair for both in zip(members, captions, strict=True) for pair in both])
    source = open_source("webdataset", SourceOptions(images=tmp_path), "pretrain")
    assert [record.captions[0] for record in source.records("caption", "train")] == [f"picture 0 {n}" for n in range(4)]
    told = [record.captions[0] for record in source.records("caption", "val")]
    assert told == ["other 0 0", "other 0 1", "said 0", "said 1"]
    assert source.stream("pretrain", "train", 2).files == 4
    assert source.validation_stream("pretrain", "val", 9).batches == 1
    assert source.validation_stream("pretrain", None, 9) is None


def test_samples_without_a_caption_are_left_out_by_name(tmp_path, capsys):
    members = [("1.jpg", picture(1)), ("1.txt", b"one"), ("2.jpg", picture(2)), ("3.txt", b"three")]
    write_tar(tmp_path / "0.tar", members)
    assert len(Shards(find_shards(tmp_path))) == 1
    assert "left out 2 samples without a picture or a caption: 2, …" in capsys.readouterr().err


def test_what_is_broken_is_named(tmp_path):
    def told(pattern: str) -> None:
        with pytest.raises(DatasetError, match=pattern):
            find_shards(tmp_path / "shards")

    told("no such folder")
    (tmp_path / "shards").mkdir()
    told("holds no WebDataset shards")
    (tmp_path / "shards/1.tar.gz").write_bytes(b"")
    told("a compressed tar cannot be read from the middle")
    write_shards(tmp_path / "shards", [3])
    tar = tmp_path / "shards/00000.tar"
    whole = tar.read_bytes()
    for damaged in (whole[:2000], whole[:2048], b""):
        tar.write_bytes(damaged)
        told(r"00000\.tar: not a whole tar")
    tar.write_bytes(b"x" * 1024 + bytes(1024))
    told(r"00000\.tar: cannot be read as a tar")
    tar.write_bytes(bytes(10240))
    told(r"00000\.tar: holds no picture with a caption")
    (tmp_path / "shards/00000_stats.json").write_text("{}")
    told(r"00000_stats\.json: does not say the number of `successes`")


def test_a_shard_that_changes_and_a_torn_picture_are_named(tmp_path):
    write_shards(tmp_path, [3], stats=True)
    (tmp_path / "00000_stats.json").write_text('{"successes": 4}')
    with pytest.raises(DatasetError, match=r"00000\.tar: holds 3 pictures with a caption, not the 4"):
        Shards(find_shards(tmp_path))[0]
    (tmp_path / "00000_stats.json").unlink()
    write_tar(
        tmp_path / "00000.tar", [("a.jpg", picture(1)[:200]), ("a.txt", b"torn"), ("b.jpg", b""), ("b.txt", b"\xff")]
    )
    shards = Shards(find_shards(tmp_path))
    with pytest.raises(PictureError, match=r"00000\.tar/a\.jpg"):
        open_picture(shards[0].image)
    with pytest.raises(DatasetError, match=r"00000\.tar/b\.txt: no caption in UTF-8"):
        shards[1]
