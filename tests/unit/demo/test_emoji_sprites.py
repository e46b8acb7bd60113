"""The committed emoji art: complete, cropped as promised, and what its licences allow."""

import json

import numpy as np
import pytest
from PIL import Image

from demo.scenes.classes import DATA_DIR, load_classes
from demo.scenes.sprites import (
    HELD_OUT_STYLE,
    SOURCES,
    TRAIN_STYLES,
    load_sprites,
    normalise,
    write_atlas,
)


@pytest.fixture(scope="module")
def sprites():
    return load_sprites((*TRAIN_STYLES, HELD_OUT_STYLE))


def test_there_are_250_classes_with_289_drawings_and_unlike_names():
    classes = load_classes()
    assert len(classes) == 250
    assert sum(len(c.drawings) for c in classes) == 289
    assert len({c.name for c in classes}) == 250
    assert [c.index for c in classes] == list(range(250))


def test_every_style_has_every_class_its_vendor_drew(sprites):
    for style, drawings in sprites.items():
        drawn = [c for c in load_classes() if any(d.codepoint in drawings for d in c.drawings)]
        expected = [c for c in load_classes() if SOURCES[style].vendor in c.vendors]
        assert drawn == expected, style
    assert {style: len(drawings) for style, drawings in sprites.items()} == {
        "noto": 289,
        "noto-v1": 224,
        "fluent-flat": 289,
        "fluent-3d": 289,
        "fxemoji": 177,
        "streamline": 147,
        "emojione": 228,
        "openclipart": 151,
        "openclipart-more": 64,
        "twemoji": 289,
    }


def test_sprites_are_tight_and_72_pixels_long(sprites):
    for style, drawings in sprites.items():
        for codepoint, sprite in drawings.items():
            assert sprite.dtype == np.uint8 and sprite.shape[2] == 4
            assert 70 <= max(sprite.shape[:2]) <= 72, (style, codepoint)
            visible = sprite[..., 3] > 40
            edges = visible[0].any(), visible[-1].any(), visible[:, 0].any(), visible[:, -1].any()
            assert all(edges), (style, codepoint)


def test_colours_are_what_the_classes_say(sprites):
    """The mean hue of the "red", "green" and "blue" circles, in every style that has them."""
    channels = {"red": 0, "green": 1, "blue": 2}
    circle = next(c for c in load_classes() if c.name == "circle")
    for drawing in circle.drawings:
        if drawing.colour in channels:
            for drawings in sprites.values():
                if drawing.codepoint in drawings:
                    pixels = drawings[drawing.codepoint]
                    assert pixels[pixels[..., 3] > 200][:, :3].mean(0).argmax() == channels[drawing.colour]


def test_unknown_style_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no sprites of style 'crayon'.*noto.*twemoji"):
        load_sprites(("crayon",))


def test_normalise_crops_to_visible_pixels_before_it_scales():
    pixels = np.zeros((300, 300, 4), np.uint8)
    pixels[50:194, 100:172] = (200, 10, 10, 255)
    pixels[10:12, 10:12] = (0, 0, 0, 30)  # too faint to count
    sprite = normalise(Image.fromarray(pixels))
    assert sprite.shape == (72, 36, 4)
    assert (sprite[10:-10, 10:-10] == (200, 10, 10, 255)).all()
    with pytest.raises(ValueError, match="no visible pixel"):
        normalise(Image.new("RGBA", (20, 20)))


def test_an_atlas_reads_back_as_written(tmp_path):
    random = np.random.default_rng(0)
    written = {f"{i:x}": random.integers(1, 256, (72, 30 + i, 4), np.uint8) for i in range(20)}
    places = write_atlas(written, tmp_path / "test.webp")
    (tmp_path / "index.json").write_text(json.dumps({"styles": {"test": places}}))
    read = load_sprites(("test",), tmp_path)["test"]
    assert all((read[codepoint] == sprite).all() for codepoint, sprite in written.items())


def test_share_alike_art_is_not_committed_and_the_rest_is_credited():
    notice = (DATA_DIR / "NOTICE").read_text(encoding="utf-8")
    index = json.loads((DATA_DIR / "index.json").read_text(encoding="utf-8"))
    for style, source in SOURCES.items():
        assert (DATA_DIR / f"{style}.webp").exists() == source.committed
        assert (style in index["styles"]) == source.committed
        if source.committed:
            assert f"{source.package} {source.version}" in notice
            assert index["packages"][style] == f"{source.package}@{source.version}"
    assert sum(path.stat().st_size for path in DATA_DIR.iterdir()) < 10e6
