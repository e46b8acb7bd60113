"""Emoji scenes: reproducible, and every truth measured again from the pixels."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from demo.make_examples import EXAMPLES_DIR, draw_video, write_examples
from demo.scenes import generator as emoji_scenes
from demo.scenes import sprite_bank
from demo.scenes.augmentation import CANVAS, HALF_SPRITE, SpriteAugmenter, _repainted, _warp_field, premultiply
from demo.scenes.backgrounds import KINDS, Backgrounds
from demo.scenes.classes import load_classes
from demo.scenes.generator import PATCH, SceneGenerator
from demo.scenes.grammar import object_recall, parse_caption
from demo.scenes.sprites import HELD_OUT_STYLE, SOURCES, TRAIN_STYLES
from mplug.inputs.video import decode_video

MAGENTA = np.array((255, 0, 255))


@pytest.fixture
def on_magenta(monkeypatch):
    """Draw all scenes on one colour, so that a test can tell sprite from background by itself."""
    monkeypatch.setattr(Backgrounds, "draw", lambda self: np.full((self.size, self.size, 3), MAGENTA, np.uint8))
    monkeypatch.setattr(sprite_bank, "CONTRAST_SHARE", 0.0)
    monkeypatch.setattr(sprite_bank, "BODY_CONTRAST_SHARE", 0.0)


def difference(image, background):
    return np.abs(image.astype(int) - background).max(-1)


@pytest.mark.parametrize("augment", [False, True])
def test_the_seed_fixes_everything(augment):
    def draw(seed):
        generator = SceneGenerator(("noto-v1", "fluent-3d"), max_groups=4, augment=augment, seed=seed)
        return [generator.batch(8), generator.batch(8)][1]

    first, again, other = draw(5), draw(5), draw(6)
    assert (first.images == again.images).all() and first.captions == again.captions
    assert (first.patch_labels == again.patch_labels).all()
    assert [s.objects for s in first.scenes] == [s.objects for s in again.scenes]
    assert first.captions != other.captions


def test_shapes_of_a_batch():
    batch = SceneGenerator(("noto",), size=64, max_groups=3, seed=1).batch(5)
    assert batch.images.shape == (5, 64, 64, 3) and batch.images.dtype == np.uint8
    assert batch.patch_labels.shape == (5, 4, 4) and batch.patch_labels.dtype == np.int16
    assert batch.captions == [scene.caption for scene in batch.scenes]


def test_boxes_fit_the_pixels(on_magenta):
    generator = SceneGenerator(TRAIN_STYLES, max_groups=1, max_count=1, seed=2)
    for scene in generator.batch(150).scenes:
        # A sprite pixel of alpha 40 differs from magenta by up to 40, less where it is magenta-like.
        rows, columns = np.nonzero(difference(scene.image, MAGENTA) > 30)
        measured = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert np.abs(np.subtract(scene.objects[0].box, measured)).max() <= 3, scene.caption


def test_patch_labels_follow_coverage(on_magenta):
    generator = SceneGenerator(("fluent-flat",), max_groups=1, max_count=4, seed=3)
    for scene in generator.batch(100).scenes:
        grid = len(scene.patch_labels)
        covered = (difference(scene.image, MAGENTA) > 60).reshape(grid, PATCH, grid, PATCH).mean((1, 3))
        assert set(np.unique(scene.patch_labels)) <= {0, scene.groups[0].class_index + 1}
        assert (scene.patch_labels[covered > 0.3] > 0).all(), scene.caption
        assert (scene.patch_labels[covered == 0] == 0).all(), scene.caption


def test_patch_labels_lie_under_objects_of_their_class():
    for scene in SceneGenerator(TRAIN_STYLES, max_groups=4, augment=True, seed=4).batch(60).scenes:
        for row, column in zip(*np.nonzero(scene.patch_labels), strict=True):
            label = scene.patch_labels[row, column] - 1
            assert any(
                o.class_index == label
                and o.box[0] < (column + 1) * PATCH
                and o.box[2] > column * PATCH
                and o.box[1] < (row + 1) * PATCH
                and o.box[3] > row * PATCH
                for o in scene.objects
            )


@pytest.mark.parametrize("augment", [False, True])
def test_captions_say_what_the_boxes_show(augment):
    generator = SceneGenerator(TRAIN_STYLES, max_groups=4, augment=augment, seed=7)
    generator.group_weights = [1, 3, 1, 1]
    for scene in generator.batch(200).scenes:
        named = parse_caption(scene.caption)
        seen = Counter((o.name, o.colour) for o in scene.objects)
        assert {(g.name, g.colour): g.count for g in named} == seen
        assert object_recall(scene.caption, scene) == 1
        assert all(0 <= v <= generator.size for o in scene.objects for v in o.box)
        centres = []
        for g in named:
            boxes = np.array([o.box for o in scene.objects if (o.name, o.colour) == (g.name, g.colour)])
            low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
            centres.append((low + high) / 2)
        if len(named) == 2:
            right, down = centres[1] - centres[0]
            if " to the left of " in scene.caption:
                assert right >= 1.35 * abs(down)
            else:
                assert " above " in scene.caption and down >= 1.35 * abs(right)
        assert len(named) < 3 or all(b[0] - a[0] >= 12.8 for a, b in itertools.pairwise(centres))


def test_sprites_hardly_overlap():
    generator = SceneGenerator(TRAIN_STYLES, max_groups=4, seed=8)
    generator.group_weights = generator.count_weights = [1, 1, 1, 1]
    for scene in generator.batch(150).scenes:
        for a, b in itertools.combinations([o.box for o in scene.objects], 2):
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            shared = max(0, width) * max(0, height)
            areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
            assert shared / (areas - shared) < 0.1


def test_sprites_stand_out_from_what_is_behind_them(monkeypatch):
    drawn = []
    draw = Backgrounds.draw
    monkeypatch.setattr(Backgrounds, "draw", lambda self: drawn.append(draw(self)) or drawn[-1].copy())
    generator = SceneGenerator((*TRAIN_STYLES, HELD_OUT_STYLE), max_groups=2, seed=9)
    for _ in range(250):
        scene = generator.scene()
        changed = difference(scene.image, drawn[-1].astype(int))
        for scene_object in scene.objects:
            x0, y0, x1, y1 = map(int, scene_object.box)
            inside = changed[y0:y1, x0:x1]
            assert (inside[inside > 0] > 30).mean() > 0.4, scene.caption


def test_classes_and_styles_are_balanced():
    generator = SceneGenerator(TRAIN_STYLES, max_groups=1, max_count=1, seed=10)
    objects = [scene.objects[0] for scene in generator.batch(1000).scenes]
    assert set(Counter(o.class_index for o in objects).values()) <= {3, 4, 5}  # 4, but for redrawn scenes
    styles = Counter(o.style for o in objects)
    hands = [[s for s in TRAIN_STYLES if SOURCES[s].vendor in c.vendors] for c in load_classes()]
    for style in TRAIN_STYLES:  # each class is drawn four times, by any of those that have it
        expected = sum(4 / len(having) for having in hands if style in having)
        assert 0.6 * expected < styles[style] < 1.5 * expected, style


def test_difficulty_can_change_between_batches():
    generator = SceneGenerator(("noto",), max_groups=1, max_count=1, seed=11)
    assert {len(s.objects) for s in generator.batch(20).scenes} == {1}
    generator.max_groups, generator.max_count = 4, 2
    generator.group_weights = [0, 0, 0, 1]
    assert {len(s.groups) for s in generator.batch(20).scenes} == {4}
    assert max(g.count for s in generator.batch(20).scenes for g in s.groups) == 2


def test_coloured_objects_keep_their_hue_when_augmented():
    augmenter = SpriteAugmenter(emoji_scenes.Random(12))
    blue = np.full((60, 60, 4), (30, 60, 200, 255), np.uint8)
    for _ in range(100):
        sprite = augmenter.augment(blue, keep_colour=True)
        middle = sprite[sprite[..., 3] > 250][:, :3].astype(int)
        assert np.median(middle, 0).argmax() == 2


def test_a_sprite_takes_on_the_colours_of_another_hand():
    red = np.full((40, 40, 4), (200, 40, 40, 255), np.uint8)
    red[:20, :, :3] = (120, 20, 20)
    blue = np.full((50, 30, 4), (40, 60, 210, 255), np.uint8)
    colour, alpha = np.ascontiguousarray(red[..., :3]), np.ascontiguousarray(red[..., 3])
    np.testing.assert_array_less(np.abs(_repainted(colour, alpha, blue, 0.0).astype(int) - colour), 6)  # Lab in bytes
    repainted = _repainted(colour, alpha, blue, 1.0).astype(int)
    assert (repainted[..., 2] > repainted[..., 0]).all()
    assert repainted[:20].sum() < repainted[20:].sum()  # what was darker stays darker


def test_warps_leave_sprites_whole():
    for seed in range(30):
        field = _warp_field(np.random.default_rng(seed))
        assert field.shape == (CANVAS, CANVAS, 2)
        # The borders of the canvas lie outside of the sprite, so nothing of it is cut off.
        edges = np.concatenate([field[0], field[-1], field[:, 0], field[:, -1]])
        assert (np.abs(edges).max(1) > HALF_SPRITE).all()


def test_premultiplied_sprites_are_dark_where_they_are_clear():
    sprite = np.zeros((2, 2, 4), np.uint8)
    sprite[0] = (200, 100, 50, 255)
    sprite[1] = (200, 100, 50, 51)
    assert premultiply(sprite)[:, 0].tolist() == [[200, 100, 50, 255], [40, 20, 10, 51]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_background_draws(kind):
    backgrounds = Backgrounds(64, emoji_scenes.Random(13))
    pictures = [backgrounds.draw(kind) for _ in range(20)]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures)
    assert len({p.tobytes() for p in pictures}) > 15


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="multiple of 16 and at least 32, not 100"):
        SceneGenerator(("noto",), size=100)
    with pytest.raises(ValueError, match="no sprites of style 'crayon'"):
        SceneGenerator(("crayon",))
    with pytest.raises(ValueError, match="max_groups must be 1 to 4, not 5"):
        SceneGenerator(("noto",), max_groups=5)


def test_examples_are_written_with_their_captions(tmp_path):
    committed = (EXAMPLES_DIR / "README.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| \[(.+?)\].*\| \**([^|*]+?)\** \|$", committed, re.MULTILINE))
    paths = write_examples(tmp_path, lambda path: said[path.name])
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert len(paths) == 17 and {p.suffix for p in paths} == {".png", ".jpg", ".mp4"}
    assert all(p.name in readme for p in paths)
    assert readme == committed  # and so what differs from the true caption is bold
    assert sum(path.name in said for path in paths) == len(paths)


def test_the_example_video_is_what_its_line_says():
    data = (EXAMPLES_DIR / "video-01.mp4").read_bytes()
    video = draw_video()
    shown = np.stack([np.asarray(picture) for picture in decode_video(data, 100)])
    assert len(data) < 100_000 and shown.shape == video.frames.shape
    assert np.abs(shown.astype(float) - video.frames).mean((1, 2, 3)).max() < 10
    assert f"| {video.caption} |" in (EXAMPLES_DIR / "README.md").read_text(encoding="utf-8")
