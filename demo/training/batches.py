"""Batches for the demo checkpoint: fresh scenes, and texts of every task over them.

A scene is drawn once and asked about several times, so that the vision encoder, which costs most, runs once
for many texts. Every text names its image by its index in the batch.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from builders.data.streams import seed_of
from builders.train.batches import padded
from builders.train.objectives.grounding import BoxIds
from demo.scene_stream import FIRST_SEED
from demo.scenes.classes import load_classes
from demo.scenes.generator import Scene, SceneGenerator, SceneObject
from demo.scenes.sprites import TRAIN_STYLES
from demo.texts.expressions import expressions_of
from demo.texts.negatives import match_negatives
from demo.texts.questions import questions_of
from demo.texts.statements import hypotheses_of, pair_statements
from demo.texts.vocabulary import write_vocabulary
from demo.training.legs import Leg, Mixture
from mplug.contract import ENTAILMENT_LABELS, NLVR_LABELS
from mplug.inputs.normalisation import PIXEL_MEAN, PIXEL_STD
from mplug.inputs.text import clean_caption
from mplug.inputs.tokenizer import Tokenizer

SCENE_SIZE = 128  # pixels
#: Chance of groups of 1, 2, 3, 4 objects. Three and four are told apart last, so they come as often as one.
COUNT_WEIGHTS = (0.28, 0.16, 0.28, 0.28)
COLOURED = 0.08  # chance of a scene that surely shows one of the few classes whose colour is named
REUSED_AFTER = 400  # pairs of a block's scenes; then a part of each batch is seen a second time
BLOCK = 64  # batches that are drawn from one seed; a run is resumed at the start of a block
MOST_COUNTED = 5  # more of a kind than that are counted as so many


def scene_tokenizer() -> Tokenizer:
    """The tokeniser of the demo's vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        return Tokenizer(path, write_vocabulary(path))


def box_shares(thing: SceneObject, scene: Scene) -> np.ndarray:
    """Float64 `[4]`: centre x, centre y, width, height of an object's box, in shares of the picture."""
    x0, y0, x1, y1 = thing.box
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]) / scene.image.shape[0]


def patch_boxes(scene: Scene) -> np.ndarray:
    """Float32 `[g, g, 4]`: the box of the object under each labelled patch, zeros under the others.

    Centre x, centre y, width, height, in shares of the picture. Of several objects of one class a patch gets
    the one whose box covers most of it.
    """
    grid = scene.patch_labels.shape[0]
    side = scene.image.shape[0] / grid
    edges = np.arange(grid) * side
    boxes, covered = np.zeros((grid, grid, 4), np.float32), np.zeros((grid, grid))
    for thing in scene.objects:
        x0, y0, x1, y1 = thing.box
        across = np.clip(np.minimum(edges + side, x1) - np.maximum(edges, x0), 0, None)
        down = np.clip(np.minimum(edges + side, y1) - np.maximum(edges, y0), 0, None)
        cover = np.outer(down, across)
        better = (scene.patch_labels == thing.class_index + 1) & (cover > covered)
        boxes[better] = box_shares(thing, scene)
        covered[better] = cover[better]
    return boxes


class SceneTexts:
    """Texts over scenes → tensors, as the served tasks tokenise them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.tokenizer = scene_tokenizer()
        self.box_ids = BoxIds.of(self.tokenizer, SCENE_SIZE)
        self.names = {
            tuple(self.tokenizer.pieces(name)): emoji_class.index + 1
            for emoji_class in load_classes()
            for name in (emoji_class.plural, emoji_class.name)
        }

    def ids(self, text: str, *, clean: bool = False) -> list[int]:
        """`[CLS] text [SEP]`; `clean`: as captions and texts to be matched are."""
        pieces = self.tokenizer.pieces(clean_caption(text) if clean else text)
        return [self.tokenizer.cls_id, *pieces, self.tokenizer.sep_id]

    def word_labels(self, ids: Sequence[int]) -> list[int]:
        """Of every token the class + 1 whose name, the longest that fits, ends there; 0 elsewhere."""
        labels = [0] * len(ids)
        longest = max(map(len, self.names))
        for end in range(1, len(ids) + 1):
            spans = (tuple(ids[end - length : end]) for length in range(min(longest, end), 0, -1))
            labels[end - 1] = next((self.names[span] for span in spans if span in self.names), 0)
        return labels

    def batch(self, scenes: Sequence[Scene], mixture: Mixture | None) -> dict[str, Tensor]:
        """Tensors by name; those of one task share a prefix, `*_image` are indices of images `[T]`.

        Scenes 0 and 1, 2 and 3, … are the pairs that statements are about. Without `mixture`, no texts.
        `row_*` are the texts of all tasks that the fusion encoder reads in one go (`Mixture.rows`), with what
        each word names: `row_words` `[T, L]` the class + 1 or 0, `row_counts` `[T, L]` how many of it the image
        shows or -1, `row_boxes` `[T, L, 4]` where it is, as `patch_boxes` say it, if there is one.
        """
        shown = [things_shown(scene) for scene in scenes]
        tensors = {
            "images": torch.from_numpy(np.stack([scene.image for scene in scenes])),
            "labels": torch.from_numpy(np.stack([scene.patch_labels for scene in scenes]).astype(np.int64)),
            "boxes": torch.from_numpy(np.stack([patch_boxes(scene) for scene in scenes])),
            "counts": torch.from_numpy(np.stack([*map(patch_counts, scenes, shown)])),
        }
        if mixture is None:
            return tensors
        random, every = self.random, range(len(scenes))
        texts = [self.ids(scene.caption, clean=True) for scene in scenes]
        tensors |= {
            "captions": padded([self.ids(scene.caption) for scene in scenes]),
            "texts": padded(texts),
            # Scenes of one caption are right for each other's text.
            "text_id": torch.tensor([zlib.crc32(scene.caption.encode()) for scene in scenes]),
        }

        def asked(count: int, ask) -> list[tuple[int, object]]:
            """`count` texts over images drawn with as few repeats as can be."""
            found: list[tuple[int, object]] = []
            while len(found) < count:
                for index in random.sample(every, len(scenes)):
                    found += [(index, text) for text in ask(index, 1)]
                    if len(found) >= count:
                        break
            return found[:count]

        questions = asked(mixture.questions, lambda i, n: questions_of(scenes[i], random, n))
        expressions = asked(mixture.expressions, lambda i, n: expressions_of(scenes[i], random, n))
        hypotheses = asked(mixture.hypotheses, lambda i, n: hypotheses_of(scenes[i], random, n))
        wrong = asked(mixture.matches, lambda i, n: match_negatives(scenes[i], random, n))
        statements = asked(mixture.statements, lambda i, n: pair_statements(scenes[i], scenes[i ^ 1], random, n))
        for name, rows, clean in (
            ("question", questions, False),
            ("expression", expressions, False),
            ("hypothesis", hypotheses, True),
            ("statement", statements, True),
        ):
            tensors[f"{name}_ids"] = padded([self.ids(text.text, clean=clean) for _, text in rows])
            tensors[f"{name}_image"] = torch.tensor([index for index, _ in rows], dtype=torch.long)
        tensors["statement_other"] = tensors["statement_image"] ^ 1
        tensors["wrong_ids"] = padded([self.ids(text, clean=True) for _, text in wrong])
        tensors["wrong_image"] = torch.tensor([index for index, _ in wrong])
        tensors["answer_ids"] = padded([self.ids(question.answer) for _, question in questions])
        boxes = torch.tensor([expression.box for _, expression in expressions]).view(-1, 4)
        tensors["box_ids"] = self.box_ids.tokens(boxes)
        tensors["entail_label"] = torch.tensor([ENTAILMENT_LABELS.index(text.label) for _, text in hypotheses])
        tensors["nlvr_label"] = torch.tensor([NLVR_LABELS.index(text.label) for _, text in statements])
        kinds = [(texts[: mixture.contrasted], torch.arange(mixture.contrasted))]
        kinds += [
            (tensors[f"{name}_ids"].tolist(), tensors[f"{name}_image"])
            for name in ("wrong", "question", "expression", "hypothesis", "statement")
        ]
        kinds.append((kinds[-1][0], tensors["statement_other"]))
        return tensors | self._rows(
            shown, [row for rows, _ in kinds for row in rows], torch.cat([images for _, images in kinds])
        )

    def _rows(
        self, shown: Sequence[dict[int, list[np.ndarray]]], rows: Sequence[Sequence[int]], images: Tensor
    ) -> dict[str, Tensor]:
        """`row_*` of a batch (`batch`), `shown` by each image (`things_shown`)."""
        named = [self.word_labels(row) for row in rows]
        longest = max(sum(token != 0 for token in row) for row in rows)
        counts = np.full((len(rows), longest), -1, np.int64)
        boxes = np.zeros((len(rows), longest, 4), np.float32)
        for index, (labels, image) in enumerate(zip(named, images.tolist(), strict=True)):
            for place, label in enumerate(labels):
                if label:
                    found = shown[image].get(label - 1, [])
                    counts[index, place] = min(len(found), MOST_COUNTED)
                    if len(found) == 1:
                        boxes[index, place] = found[0]
        return {
            "row_ids": padded(rows)[:, :longest],
            "row_image": images,
            "row_words": padded(named)[:, :longest],
            "row_counts": torch.from_numpy(counts),
            "row_boxes": torch.from_numpy(boxes),
        }


def patch_counts(scene: Scene, shown: dict[int, list[np.ndarray]]) -> np.ndarray:
    """Int64 `[g, g]`: of the class of each patch, how many the scene shows (`things_shown`); 0 on background."""
    counts = np.zeros(scene.patch_labels.max() + 1, np.int64)
    for index, found in shown.items():
        if index + 1 < len(counts):  # else too small an object for any label
            counts[index + 1] = min(len(found), MOST_COUNTED)
    return counts[scene.patch_labels]


def things_shown(scene: Scene) -> dict[int, list[np.ndarray]]:
    """Boxes of a scene's objects by class index, as `patch_boxes` says them."""
    found: dict[int, list[np.ndarray]] = {}
    for thing in scene.objects:
        found.setdefault(thing.class_index, []).append(box_shares(thing, scene))
    return found


class DemoBatches(Dataset):
    """Endless batches of fresh scenes with texts; batch `index` is always the same.

    Scenes of a block are drawn one batch after the other, since some are seen twice: a batch in the middle of a block
    costs the drawing of those before it, unless they were drawn just now.
    """

    files = 0  # nothing is read

    def __init__(self, leg: Leg, *, seed: int, rank: int = 0, styles: Sequence[str] = TRAIN_STYLES) -> None:
        self.leg, self.seed, self.rank, self.styles = leg, seed, rank, tuple(styles)
        self._texts: SceneTexts | None = None
        self._block, self._drawn = -1, 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of `SceneTexts.batch`."""
        if get_worker_info() is not None:
            cv2.setNumThreads(1)
        block, place = divmod(index, BLOCK)
        if block != self._block or place < self._drawn:
            self._begin(block)
        while self._drawn < place:
            self._draw()
        if self._texts is None:
            self._texts = SceneTexts(0)
        self._texts.random = Random(seed_of("demo texts", self.seed, self.rank, index))
        return self._texts.batch(self._draw(), self.leg.mixture)

    def _begin(self, block: int) -> None:
        seed = seed_of("demo", self.seed, self.rank, block)
        leg = self.leg
        self._scenes = SceneGenerator(
            self.styles,
            size=SCENE_SIZE,
            max_groups=leg.max_groups,
            max_count=leg.max_count,
            augment=True,
            seed=FIRST_SEED + seed,
        )
        self._scenes.count_weights, self._scenes.coloured = list(COUNT_WEIGHTS), COLOURED
        self._chance = Random(seed)
        self._pairs: list[list[Scene]] = []  # to be seen once more, with other texts: drawing is expensive
        self._block, self._drawn = block, 0

    def _draw(self) -> list[Scene]:
        """Return the scenes of the next batch of the block."""
        self._scenes.augment = self._chance.random() < self.leg.augmented
        again = self.leg.batch_size // 4 if len(self._pairs) >= REUSED_AFTER else 0
        seen = [self._pairs.pop(self._chance.randrange(len(self._pairs))) for _ in range(again)]
        drawn = self._scenes.batch(self.leg.batch_size - 2 * again, paired=True).scenes
        self._pairs += [drawn[start : start + 2] for start in range(0, len(drawn) - 1, 2)]
        self._drawn += 1
        return [*drawn, *(scene for pair in seen for scene in pair)]


def object_patches(labels: Tensor, count: int) -> Tensor:
    """Of labels `[B, g, g]`, the indices `[B, count]` of patches that show objects, filled up with background."""
    shown = (labels.flatten(1) > 0).float()
    return (shown + 0.5 * torch.rand_like(shown)).topk(count, dim=1).indices


def normalise(images: Tensor) -> Tensor:
    """Pixels uint8 `[B, R, R, 3]` → normalised `[B, 3, R, R]`."""
    mean, std = torch.from_numpy(PIXEL_MEAN), torch.from_numpy(PIXEL_STD)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
