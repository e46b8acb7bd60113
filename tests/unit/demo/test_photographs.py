"""The split of photographs: what its mapping promises, and that it is drawn from whatever folder has the pictures."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from builders.data.readers.records import DatasetError
from builders.data.sources import SourceOptions, open_source
from demo import records
from demo import splits as scene_splits
from demo.scenes import art_packages
from demo.scenes.classes import load_classes
from demo.scenes.photographs import (
    BACKDROP_SIDE,
    BACKDROPS,
    PHOTO_STYLES,
    Backdrop,
    PhotoBackdrops,
    Stamp,
    read_mapping,
    write_photographs,
)
from demo.scenes.sprites import load_sprites
from demo.splits import SPLITS, scene_items, truth_of, video_items

SHOWN = ("dog", "cow", "lemon", "guitar")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Discs of one colour each as cut-outs, the dog twice; a grey backdrop, of which the right half is used."""
    y, x = np.mgrid[:100, :100]
    disc = ((y - 50) ** 2 + (x - 50) ** 2 < 40**2).astype(np.uint8) * 255
    codepoints = {c.name: c.drawings[0].codepoint for c in load_classes()}
    stamps = [Stamp(f"{name}.png", PHOTO_STYLES[0], codepoints[name]) for name in SHOWN]
    stamps.append(Stamp("dog 2.png", PHOTO_STYLES[1], codepoints["dog"]))
    colours = ((250, 20, 20), (20, 20, 250), (250, 250, 20), (10, 10, 10), (250, 20, 250))
    files = {
        stamp.file: png(np.dstack([np.full((100, 100, 3), colour, np.uint8), disc]))
        for stamp, colour in zip(stamps, colours, strict=True)
    }
    backdrop = np.full((300, 800, 3), 255, np.uint8)
    backdrop[:, 400:] = (128, 140, 128)
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, files, {"a.jpg": png(backdrop)}, stamps, [Backdrop("p", "a.jpg", (0.5, 0, 1, 1))])
    return folder


@pytest.fixture
def split(stand_in):
    return replace(SPLITS["test-photographs"], folder=stand_in, backdrops=stand_in / BACKDROPS)


def test_the_mapping_names_classes_of_ours_and_parts_of_pictures():
    stamps, backdrops = read_mapping()
    shown = {c.name for c in load_classes() if {d.codepoint for d in c.drawings} & {s.codepoint for s in stamps}}
    assert len(stamps) == 109 and len(shown) == 85
    assert len({(stamp.style, stamp.codepoint) for stamp in stamps}) == len(stamps)
    assert len(backdrops) == 14
    for x0, y0, x1, y1 in (backdrop.part for backdrop in backdrops):
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        ({"a.png": {"class": "gryphon"}}, r"a.png is said to show \('gryphon', None\), which is no class"),
        ({"a.png": {"class": "apple", "colour": "blue"}}, r"\('apple', 'blue'\), which is no class"),
        ({f"{n}.png": {"class": "dog"} for n in range(3)}, r"2.png is cut-out 3 of .*dog.*room for 2"),
    ],
)
def test_a_mapping_of_what_does_not_exist_is_refused(tmp_path, stamps, message):
    path = tmp_path / "photographs.json"
    path.write_text(json.dumps({"stamps": stamps, "backdrops": {}}))
    with pytest.raises(ValueError, match=message):
        read_mapping(path)


def test_written_cut_outs_and_backdrops_read_back(stand_in):
    first, second = load_sprites(PHOTO_STYLES, stand_in).values()
    assert len(first) == len(SHOWN) and len(second) == 1
    assert all(sprite.shape == (72, 72, 4) for sprite in (*first.values(), *second.values()))
    with Image.open(stand_in / BACKDROPS / "00.png") as backdrop:
        assert min(backdrop.size) == BACKDROP_SIDE
        assert backdrop.getpixel((200, 100)) == (128, 140, 128)


def test_the_split_shows_the_cut_outs_on_the_backdrops_and_is_the_same_each_time(split):
    items, again = list(scene_items(split, 12)), list(scene_items(split, 12))
    assert {o.name for item in items for o in item.scene.objects} == set(SHOWN)
    assert {o.style for item in items for o in item.scene.objects} == set(PHOTO_STYLES)
    for item, other in zip(items, again, strict=True):
        assert truth_of(item) == truth_of(other) and (item.scene.image == other.scene.image).all()
        outside = np.ones(item.scene.image.shape[:2], bool)
        for x0, y0, x1, y1 in (o.box for o in item.scene.objects):
            outside[max(0, int(y0) - 2) : int(y1) + 2, max(0, int(x0) - 2) : int(x1) + 2] = False
        assert (item.scene.image[outside] == (128, 140, 128)).all(), item.scene.caption
    assert next(video_items(split, 1)).video.frames.shape[0] == 8


def test_an_evaluation_asks_for_it_as_for_any_split(split, monkeypatch):
    monkeypatch.setitem(scene_splits.SPLITS, split.name, split)
    monkeypatch.setattr(records, "_scenes", records._scenes.__wrapped__)
    source = open_source("emoji", SourceOptions())
    assert list(source.splits(split.name)) == [split.name]
    assert [len(source.records(task, split.name, 5)) for task in ("caption", "vqa", "grounding")] == [5, 5, 5]


def test_without_the_pictures_it_says_how_to_fetch_them(split, tmp_path, monkeypatch):
    monkeypatch.setitem(scene_splits.SPLITS, split.name, replace(split, folder=tmp_path / "none"))
    with pytest.raises(DatasetError, match=r"none, which is not there: `python demo/scenes/photographs.py` fetches"):
        open_source("emoji", SourceOptions()).splits(split.name)


def test_what_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no backdrop"):
        PhotoBackdrops(64, None, tmp_path)
    small = [Stamp("a.png", PHOTO_STYLES[0], "1f436")]
    with pytest.raises(ValueError, match=r"a.png: \(40, 30\) pixels; at least 48 are needed"):
        write_photographs(tmp_path, {"a.png": png(np.full((30, 40, 4), 255, np.uint8))}, {}, small, [])


def test_a_package_that_cannot_be_fetched_is_an_error_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="there is no apt-get on this machine"):
        art_packages.fetch_debian("some-art", None, tmp_path, "usr/")
    with pytest.raises(RuntimeError, match="there is no npm on this machine"):
        art_packages.fetch_npm("@some/art", "1.0.0", tmp_path)
