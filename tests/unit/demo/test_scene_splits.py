"""Splits: apart from training and from each other, the same as when they were recorded, and what they promise."""

import json
from itertools import combinations

import numpy as np
import pytest

from demo import splits as scene_splits
from demo.scenes.classes import load_classes
from demo.scenes.generator import SceneGenerator
from demo.scenes.held_out import RESERVED_SEEDS, check_training_seed, held_out_pairs, is_held_out
from demo.scenes.sprites import HELD_OUT_STYLE, SPLIT_STYLES
from demo.splits import MANIFEST, SPLITS, check_manifest, pair_items, scene_items, split_of, video_items

TESTS = [split for split in SPLITS.values() if split.is_recorded]


def test_test_splits_are_still_those_that_were_recorded():
    assert check_manifest(count=12) == []


def test_a_changed_item_is_found_out(monkeypatch):
    drawn = scene_splits.digests
    monkeypatch.setattr(scene_splits, "digests", lambda *a: (["0" * 64, *drawn(*a)[0][1:]], drawn(*a)[1]))
    monkeypatch.setattr(scene_splits, "SPLITS", {"test": SPLITS["test"]})
    monkeypatch.setattr(scene_splits, "KINDS", {"scenes": scene_items})
    faults = check_manifest(count=8)
    assert "test, scenes: 1 of 8 items are others than when it was written, item 0 first" in faults


def test_a_changed_recipe_is_found_out(tmp_path, monkeypatch):
    document = json.loads(MANIFEST.read_text(encoding="utf-8"))
    document["splits"]["test"]["styles"] = ["noto"]
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.setattr(scene_splits, "SPLITS", {"test": SPLITS["test"]})
    faults = check_manifest(path, count=0)
    assert any("test: styles is" in fault for fault in faults)
    assert "test-twemoji: is in one of manifest and code only" in faults


def test_the_manifest_covers_every_test_split():
    written = json.loads(MANIFEST.read_text(encoding="utf-8"))["splits"]
    assert set(written) == {split.name for split in TESTS}
    for split in TESTS:
        entry = written[split.name]["scenes"]
        assert entry["count"] == split.scenes and len(entry["digests"]) == 4 * split.scenes
        assert 60 < entry["mean"] < 190
    assert MANIFEST.stat().st_size < 60_000


def test_an_item_depends_on_its_index_alone():
    split = SPLITS["test"]
    first, all_ = list(scene_items(split, 3)), list(scene_items(split, 6))
    for one, two in zip(first, all_, strict=False):
        assert (one.scene.image == two.scene.image).all()
        assert one.questions == two.questions and one.expressions == two.expressions


def test_splits_hold_the_styles_and_pairs_that_their_names_say():
    for name, styles, pairs in (
        ("test", SPLIT_STYLES, "seen"),
        ("test-twemoji", (HELD_OUT_STYLE,), "seen"),
        ("test-pairs", SPLIT_STYLES, "held-out"),
        ("test-pairs-twemoji", (HELD_OUT_STYLE,), "held-out"),
    ):
        for item in scene_items(SPLITS[name], 40):
            assert {o.style for o in item.scene.objects} <= set(styles)
            names = {o.name for o in item.scene.objects}
            held_out = any(is_held_out(a, b) for a, b in combinations(names, 2))
            assert held_out == (pairs == "held-out"), item.scene.caption
    for item in video_items(SPLITS["test-pairs"], 10):
        assert is_held_out(*(track.name for track in item.video.tracks))
    crowds = {len(item.scene.groups) for item in scene_items(SPLITS["test-crowds"], 30)}
    assert crowds == {3, 4}


def test_items_bring_texts_of_every_task():
    items = list(scene_items(SPLITS["validation"], 30))
    assert all(len(item.questions) == 4 and len(item.negatives) >= 2 for item in items)
    assert sum(bool(item.expressions) for item in items) > 27
    assert all({h.label for h in item.hypotheses} == {"entailment", "neutral", "contradiction"} for item in items)
    pairs = list(pair_items(SPLITS["validation"], 15))
    assert all({s.label for s in item.statements} == {"true", "false"} for item in pairs)
    videos = list(video_items(SPLITS["validation"], 15))
    assert all(item.motion for item in videos) and sum(bool(item.zero_shot) for item in videos) > 6


def test_seeds_of_splits_are_reserved_and_their_own():
    seeds = [split.seed for split in SPLITS.values()]
    assert len(set(seeds)) == len(seeds) and set(seeds) <= set(RESERVED_SEEDS)
    for split in SPLITS.values():
        for seed in (split.seed, next(iter(scene_splits._item_seeds(split, 2, 1, None)))):
            with pytest.raises(ValueError, match=f"seed {seed} is kept for validation and test"):
                check_training_seed(seed)
    assert check_training_seed(5) == 5 and check_training_seed(1_000_000) == 1_000_000


def test_training_cannot_draw_a_test_split():
    with pytest.raises(ValueError, match="seed 90000 is kept for validation and test"):
        SceneGenerator(("noto",), augment=True, seed=90_000)
    generator = SceneGenerator(("noto",), augment=True, seed=1)
    with pytest.raises(ValueError, match="train with another"):
        generator.restart(91_000)
    for index in range(200):  # the default leaves held-out pairs to the tests
        names = {o.name for o in generator.scene().objects}
        assert not any(is_held_out(a, b) for a, b in combinations(names, 2)), index


def test_held_out_pairs_are_a_fixed_small_share_over_all_classes():
    pairs = held_out_pairs()
    assert len(pairs) == 1319  # of 31,125; another number means that all checkpoints saw what is tested
    assert is_held_out("tent", "pear") and is_held_out("pear", "tent") and not is_held_out("dog", "dog")
    share = np.bincount(np.array(pairs).ravel(), minlength=len(load_classes())) / 249
    assert share.min() > 0 and share.max() < 0.1


def test_unknown_split_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no split 'train': there are validation, .*test-crowds"):
        split_of("train")
    with pytest.raises(ValueError, match="has 1000 of these, not 1001"):
        list(scene_items(SPLITS["test"], 1001))
    with pytest.raises(ValueError, match="pairs must be one of seen, held-out, any, not 'all'"):
        SceneGenerator(("noto",), pairs="all")
