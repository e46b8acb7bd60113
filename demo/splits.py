"""Fixed validation and test splits of the emoji scenes: by seed, by drawing style, by pairs of classes.

    python demo/splits.py --check    # draws all test splits again and compares
    python demo/splits.py --write    # once, before anything is measured on them

``emoji/test_splits.json`` records what the test splits hold, but for the one of photographs, whose pictures are
fetched (`scenes/photographs.py`): a hash over all truths of a split (classes, boxes, texts, answers), and a short
digest of every item. Pictures are not hashed: their last bits differ between processors; their mean brightness is
compared instead. A background can turn out one level brighter on another machine, and once in thousands of times that
decides whether a sprite stands out from it: every item is drawn from a seed of its own, so that only this one item
would be another.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

if __package__ in (None, ""):  # run as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from demo.scenes.classes import DATA_DIR
from demo.scenes.generator import Scene, SceneGenerator
from demo.scenes.held_out import SEEDS_PER_SPLIT
from demo.scenes.photographs import BACKDROPS, PHOTO_STYLES, PHOTOGRAPHS
from demo.scenes.sprites import HELD_OUT_STYLE, INDEX_FILE, SPLIT_STYLES
from demo.scenes.videos import SceneVideo, VideoGenerator
from demo.texts.expressions import Expression, expressions_of
from demo.texts.negatives import match_negatives
from demo.texts.questions import Question, questions_of
from demo.texts.statements import Hypothesis, Statement, hypotheses_of, pair_statements
from demo.texts.video_questions import motion_questions, zero_shot_questions

OPENMOJI = DATA_DIR.parents[1] / "build" / "openmoji"  # share-alike: fetched, never committed
MANIFEST = DATA_DIR / "test_splits.json"
DIGEST = 4  # hexadecimal digits of an item's digest in the manifest
MAY_DIFFER = 0.01  # share of items that another processor may draw otherwise
MEAN_MAY_DIFFER = 0.1  # levels of 255


@dataclass(frozen=True)
class Split:
    """What a split draws. ``group_weights``: chance of 1, 2, … groups; ``pairs`` as in ``SceneGenerator``."""

    name: str
    styles: tuple[str, ...]
    seed: int
    pairs: str = "seen"
    group_weights: tuple[float, ...] = (0.56, 0.44)
    scenes: int = 1000
    scene_pairs: int = 500
    videos: int = 200
    folder: Path = DATA_DIR  # of its sprites, and of its backdrops where they are photographs
    backdrops: Path | None = None
    fetched_by: str = ""  #: the command that writes `folder`, where the artwork is not committed

    @property
    def is_here(self) -> bool:
        """True where its artwork lies in `folder`."""
        return (self.folder / INDEX_FILE).exists()

    @property
    def is_test(self) -> bool:
        """True for what nothing may be chosen by."""
        return self.name.startswith("test")

    @property
    def is_recorded(self) -> bool:
        """True for what stands in the manifest: the test splits whose artwork is committed."""
        return self.is_test and self.folder == DATA_DIR

    def check_folder(self) -> None:
        """Raise ``FileNotFoundError`` where the artwork of the split was not fetched yet."""
        if not self.is_here:
            raise FileNotFoundError(
                f"split {self.name!r} draws from {self.folder}, which is not there: "
                f"`{self.fetched_by}` fetches what it needs"
            )


_FEWER = {"scenes": 500, "scene_pairs": 250, "videos": 100}
SPLITS = {
    split.name: split
    for split in (
        Split("validation", SPLIT_STYLES, 20_000, **_FEWER),
        Split("validation-twemoji", (HELD_OUT_STYLE,), 21_000, **_FEWER),
        Split("test", SPLIT_STYLES, 90_000),
        Split("test-twemoji", (HELD_OUT_STYLE,), 91_000),
        Split("test-pairs", SPLIT_STYLES, 92_000, "held-out", (0, 1)),
        Split("test-pairs-twemoji", (HELD_OUT_STYLE,), 93_000, "held-out", (0, 1)),
        Split("test-crowds", SPLIT_STYLES, 94_000, "seen", (0, 0, 0.6, 0.4)),
        Split(
            "test-photographs",
            PHOTO_STYLES,
            96_000,
            folder=PHOTOGRAPHS,
            backdrops=PHOTOGRAPHS / BACKDROPS,
            fetched_by="python demo/scenes/photographs.py",
        ),
        Split(
            "test-openmoji",
            ("openmoji",),
            95_000,
            folder=OPENMOJI,
            fetched_by="python demo/scenes/sprites.py --styles openmoji --output build/openmoji",
        ),
    )
}


@dataclass(frozen=True)
class SceneItem:
    """A scene and the texts that are asked of it."""

    scene: Scene
    questions: tuple[Question, ...]  # up to 4
    expressions: tuple[Expression, ...]  # up to 2; empty where nothing can be pointed at without doubt
    hypotheses: tuple[Hypothesis, ...]  # up to 3, of different labels
    negatives: tuple[str, ...]  # up to 3 captions that are wrong in one thing


@dataclass(frozen=True)
class PairItem:
    """Two scenes and up to 2 statements, one of them true and one false."""

    first: Scene
    second: Scene
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class VideoItem:
    """A video; up to 2 questions on motion and order, up to 3 that any single frame answers."""

    video: SceneVideo
    motion: tuple[Question, ...]
    zero_shot: tuple[Question, ...]


def split_of(name: str) -> Split:
    """Return a split by its name. Raises ``ValueError`` with all names for another."""
    if name not in SPLITS:
        raise ValueError(f"no split {name!r}: there are {', '.join(SPLITS)}")
    return SPLITS[name]


def scene_items(split: Split, count: int | None = None) -> Iterator[SceneItem]:
    """Draw the first ``count`` scenes (all that the split has) with their texts; each depends on its index alone."""
    generator = _scene_generator(split)
    for seed in _item_seeds(split, 0, split.scenes, count):
        generator.restart(seed)
        scene, random = generator.scene(), _text_random(seed)
        yield SceneItem(
            scene,
            tuple(questions_of(scene, random, 4)),
            tuple(expressions_of(scene, random, 2)),
            tuple(hypotheses_of(scene, random, 3)),
            tuple(match_negatives(scene, random, 3)),
        )


def pair_items(split: Split, count: int | None = None) -> Iterator[PairItem]:
    """Draw the first ``count`` pairs of scenes with statements."""
    generator = _scene_generator(split)
    for seed in _item_seeds(split, 1, split.scene_pairs, count):
        generator.restart(seed)
        first, second = generator.pair()
        yield PairItem(first, second, tuple(pair_statements(first, second, _text_random(seed), 2)))


def video_items(split: Split, count: int | None = None, *, frames: int = 8) -> Iterator[VideoItem]:
    """Draw the first ``count`` videos with questions. The manifest holds those of 8 frames."""
    split.check_folder()
    generator = VideoGenerator(
        split.styles,
        seed=split.seed,
        frames=frames,
        pairs=split.pairs,
        folder=split.folder,
        backdrops=split.backdrops,
    )
    if split.pairs == "held-out":
        generator.two_groups = 1.0
    for seed in _item_seeds(split, 2, split.videos, count):
        generator.restart(seed)
        video, random = generator.video(), _text_random(seed)
        yield VideoItem(video, tuple(motion_questions(video, random, 2)), tuple(zero_shot_questions(video, random, 3)))


def _scene_generator(split: Split) -> SceneGenerator:
    split.check_folder()
    generator = SceneGenerator(
        split.styles,
        max_groups=len(split.group_weights),
        seed=split.seed,
        pairs=split.pairs,
        folder=split.folder,
        backdrops=split.backdrops,
    )
    generator.group_weights = list(split.group_weights)
    return generator


def _item_seeds(split: Split, kind: int, most: int, count: int | None) -> Iterable[int]:
    """Return seeds that no other item has; ``kind``: 0 for scenes, 1 for pairs, 2 for videos."""
    if count is not None and not 0 <= count <= most:
        raise ValueError(f"split {split.name!r} has {most} of these, not {count}")
    first = split.seed * SEEDS_PER_SPLIT + kind * SEEDS_PER_SPLIT // 4
    return range(first, first + (most if count is None else count))


def _text_random(seed: int) -> Random:
    """Return the dice of an item's texts: others than those that laid it out."""
    return Random(f"texts {seed}")


def truth_of(item: SceneItem | PairItem | VideoItem) -> str:
    """Return all that is true of an item, as one line of JSON without any pixel."""
    if isinstance(item, VideoItem):
        return json.dumps(
            [
                item.video.caption,
                [vars(track) for track in item.video.tracks],
                [vars(question) for question in (*item.motion, *item.zero_shot)],
            ]
        )
    if isinstance(item, PairItem):
        scenes = [_truth_of_scene(scene) for scene in (item.first, item.second)]
        return json.dumps([scenes, [vars(statement) for statement in item.statements]])
    texts = (item.questions, item.expressions, item.hypotheses)
    return json.dumps([_truth_of_scene(item.scene), [vars(text) for kind in texts for text in kind], item.negatives])


def _truth_of_scene(scene: Scene) -> list:
    return [scene.caption, [[o.name, o.colour, o.style, o.group, o.box] for o in scene.objects]]


KINDS = {"scenes": scene_items, "scene_pairs": pair_items, "videos": video_items}


def _images(item: SceneItem | PairItem | VideoItem) -> list[np.ndarray]:
    if isinstance(item, VideoItem):
        return [item.video.frames]
    return [item.first.image, item.second.image] if isinstance(item, PairItem) else [item.scene.image]


def digests(split: Split, kind: str, count: int | None = None) -> tuple[list[str], float]:
    """Return (SHA-256 of each item's truth, hexadecimal; mean level of all pixels) of a kind of ``KINDS``."""
    found, means = [], []
    for item in KINDS[kind](split, count):
        found.append(sha256(truth_of(item).encode()).hexdigest())
        means += [image.mean() for image in _images(item)]
    return found, float(np.mean(means)) if means else 0.0


def entry_of(split: Split, kind: str) -> dict:
    """Return what the manifest says of one kind of items of a split."""
    found, mean = digests(split, kind)
    return {
        "count": len(found),
        "sha256": sha256("".join(found).encode()).hexdigest(),
        "mean": round(mean, 3),
        "digests": "".join(digest[:DIGEST] for digest in found),
    }


def write_manifest(path: Path = MANIFEST) -> None:
    """Draw the test splits and write the manifest."""
    tests = [split for split in SPLITS.values() if split.is_recorded]
    entries = {
        split.name: {
            "styles": split.styles,
            "seed": split.seed,
            "pairs": split.pairs,
            "group_weights": split.group_weights,
            **{kind: entry_of(split, kind) for kind in KINDS},
        }
        for split in tqdm(tests, desc="test splits", disable=None)
    }
    path.write_text(json.dumps({"digest_digits": DIGEST, "splits": entries}, indent=1) + "\n", encoding="utf-8")


def check_manifest(path: Path = MANIFEST, count: int | None = None) -> list[str]:
    """Return what is wrong with the test splits as drawn now; nothing when they are those of the manifest.

    ``count``: look only at so many items of each kind; hashes over all and means are not compared then.
    """
    written = json.loads(path.read_text(encoding="utf-8"))["splits"]
    tests = {name: split for name, split in SPLITS.items() if split.is_recorded}
    faults = [f"{name}: is in one of manifest and code only" for name in sorted(set(written) ^ set(tests))]
    for name in tqdm([name for name in tests if name in written], desc="test splits", disable=None):
        split, entry = tests[name], written[name]
        for field in ("styles", "seed", "pairs", "group_weights"):
            now = getattr(split, field)
            if (list(now) if isinstance(now, tuple) else now) != entry[field]:
                faults.append(f"{name}: {field} is {now!r}, but {entry[field]!r} in the manifest")
        for kind in KINDS:
            faults += [f"{name}, {kind}: {fault}" for fault in _compare(split, kind, entry[kind], count)]
    return faults


def _compare(split: Split, kind: str, entry: dict, count: int | None) -> Iterator[str]:
    if getattr(split, kind) != entry["count"]:
        yield f"there are {getattr(split, kind)}, but {entry['count']} in the manifest"
        return
    found, mean = digests(split, kind, count)
    short = [entry["digests"][DIGEST * i : DIGEST * (i + 1)] for i in range(len(found))]
    differ = [index for index, (now, then) in enumerate(zip(found, short, strict=True)) if now[:DIGEST] != then]
    if len(differ) > MAY_DIFFER * len(found):
        yield f"{len(differ)} of {len(found)} items are others than when it was written, item {differ[0]} first"
    if count is None:
        if not differ and sha256("".join(found).encode()).hexdigest() != entry["sha256"]:
            yield "the hash over all items is another one"
        if abs(mean - entry["mean"]) > MEAN_MAY_DIFFER:
            yield f"the mean of all pixels is {mean:.3f}, but {entry['mean']:.3f} in the manifest"


def main() -> None:
    """Write or check the record of the test splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="draw the test splits again; exit 1 if they are others")
    action.add_argument("--write", action="store_true", help="record them anew: every figure measured before is void")
    arguments = parser.parse_args()
    if arguments.write:
        write_manifest()
        print(f"{MANIFEST}: written")
        return
    faults = check_manifest()
    if faults:
        sys.exit("\n".join(faults))
    print(f"the test splits are those of {MANIFEST.name}")


if __name__ == "__main__":
    main()
