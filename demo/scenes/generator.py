"""Emoji scenes: pictures drawn on the fly, with captions, boxes and patch labels that are exactly true.

    generator = SceneGenerator(TRAIN_STYLES, augment=True, seed=1)
    batch = generator.batch(64)        # batch.images, batch.captions, batch.patch_labels, batch.scenes

The same seed, arguments and calls give the same scenes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import cv2
import numpy as np

from demo.scenes.augmentation import TRAITS
from demo.scenes.backgrounds import Backgrounds
from demo.scenes.classes import DATA_DIR, Drawing, EmojiClass, load_classes
from demo.scenes.grammar import AmbiguousLayout, Box, ObjectGroup, caption_of
from demo.scenes.held_out import check_training_seed, held_out_pairs, partners
from demo.scenes.layout import Place, plan_layout
from demo.scenes.photographs import PhotoBackdrops
from demo.scenes.reference import hull
from demo.scenes.sprite_bank import Piece, Sprite, SpriteBank, may_mirror, paste, stand_out, visible_box

PATCH = 16  # pixels; side of one cell of the patch labels
PATCH_SHARE = 0.2  # a sprite labels a patch when it covers more than this share of it
PAIRS = ("seen", "held-out", "any")  # which classes may stand together in a scene
SHARED_CLASS = 0.6  # chance that the second scene of a pair shows a class of the first
BACKGROUND_TRIES = 12
LAYOUT_TRIES = 20
LEVELS = np.linspace(0, 1, 256)


@dataclass(frozen=True)
class SceneObject:
    """One sprite. ``box`` is tight to its visible pixels (alpha > 40); ``group`` indexes the groups."""

    class_index: int
    name: str
    colour: str | None
    box: Box
    group: int
    style: str


@dataclass(frozen=True)
class Scene:
    """One picture and everything true about it.

    ``image`` uint8 [size, size, 3] RGB; ``patch_labels`` int16 [size/16, size/16], 0 for background, else
    class index + 1 of the sprite that covers most of the patch and over a fifth of it.
    """

    image: np.ndarray
    groups: tuple[ObjectGroup, ...]
    objects: tuple[SceneObject, ...]
    caption: str
    patch_labels: np.ndarray


@dataclass(frozen=True)
class SceneBatch:
    """``images`` uint8 [n, size, size, 3]; ``patch_labels`` int16 [n, size/16, size/16]; lists: length n."""

    images: np.ndarray
    captions: list[str]
    patch_labels: np.ndarray
    scenes: list[Scene]


@dataclass(frozen=True)
class Choice:
    """What a group will show, before it has a place."""

    emoji_class: EmojiClass
    drawing: Drawing
    style: str
    sprites: tuple[Sprite, ...]


class SceneGenerator:
    """Seeded generator of scenes.

    Difficulty may be changed between calls: ``max_groups`` (1..4), ``group_weights`` and ``count_weights``
    (chance of 1, 2, 3, 4 groups, and of as many objects in a group), ``max_count`` (1..4), ``coloured``
    (chance that a scene surely shows one of the few classes whose colour is named; without, one in fifty groups).
    ``augment`` breaks the styles apart, for training (seeds of test splits are refused then); ``folder`` holds
    the sprite atlases; ``backdrops`` one of photographs, which stand behind the sprites instead of drawn
    backgrounds. ``pairs`` says which classes may stand together: "seen" leaves out the pairs that are
    held out for tests (``held_out``), "held-out" puts one of them into every scene of two groups or more, "any"
    leaves it to chance.
    Raises ``ValueError`` for unknown styles, a size that is no multiple of 16, maxima outside 1..4 and
    ``pairs`` that are none of the three.
    """

    def __init__(
        self,
        styles: Sequence[str],
        *,
        size: int = 128,
        max_groups: int = 2,
        max_count: int = 4,
        augment: bool = False,
        seed: int = 0,
        pairs: str = "seen",
        folder: Path = DATA_DIR,
        backdrops: Path | None = None,
        traits: Collection[str] = TRAITS,
    ) -> None:
        if size % PATCH or size < 2 * PATCH:
            raise ValueError(f"size must be a multiple of {PATCH} and at least {2 * PATCH}, not {size}")
        for name, value in (("max_groups", max_groups), ("max_count", max_count)):
            if not 1 <= value <= 4:
                raise ValueError(f"{name} must be 1 to 4, not {value}")
        if pairs not in PAIRS:
            raise ValueError(f"pairs must be one of {', '.join(PAIRS)}, not {pairs!r}")
        self.size = size
        self.pairs = pairs
        self.augment = augment
        self.max_groups = max_groups
        self.max_count = max_count
        self.group_weights = [0.45, 0.35, 0.12, 0.08]
        self.count_weights = [0.7, 0.14, 0.09, 0.07]
        self.coloured = 0.0
        self._random = Random(check_training_seed(seed) if augment else seed)
        if backdrops is None:
            self._backgrounds = Backgrounds(size, self._random)
        else:
            self._backgrounds = PhotoBackdrops(size, self._random, backdrops)
        self._bank = SpriteBank(styles, self._random, folder, traits)
        self._grain = _grain(self._random, size)
        self._deck: list[EmojiClass] = []

    def batch(self, n: int, *, paired: bool = False) -> SceneBatch:
        """Return ``n`` new scenes; ``paired``: scenes 0 and 1, 2 and 3, … go together as ``pair`` draws them."""
        if paired:
            scenes = [scene for _ in range((n + 1) // 2) for scene in self.pair()][:n]
        else:
            scenes = [self.scene() for _ in range(n)]
        return SceneBatch(
            images=np.stack([scene.image for scene in scenes]),
            captions=[scene.caption for scene in scenes],
            patch_labels=np.stack([scene.patch_labels for scene in scenes]),
            scenes=scenes,
        )

    def restart(self, seed: int) -> None:
        """Go on with the random numbers of another seed: the next scene depends on it alone, unless augmented."""
        self._random.seed(check_training_seed(seed) if self.augment else seed)
        self._deck.clear()

    def pair(self) -> tuple[Scene, Scene]:
        """Return two scenes to compare; more often than not a class of the first is in the second too."""
        first = self.scene()
        if self._random.random() >= SHARED_CLASS:
            return first, self.scene()
        return first, self.scene((self._random.choice(first.groups).class_index,))

    def scene(self, classes: Sequence[int] = ()) -> Scene:
        """Return one new scene; ``classes``: indices of some that it shows, for as many groups as it has."""
        choices = self.choose(classes)
        for _ in range(LAYOUT_TRIES):
            shapes = [[sprite.shape for sprite in choice.sprites] for choice in choices]
            plan = plan_layout(self._random, shapes, self.size)
            scene = self._render(choices, plan)
            if scene is not None:
                return scene
        return self.scene(classes)  # these sprites do not go together; others will

    def choose(self, classes: Sequence[int] = ()) -> list[Choice]:
        """Return what a new scene will show, group by group; ``classes`` as for ``scene``."""
        random = self._random
        number = random.choices((1, 2, 3, 4)[: self.max_groups], self.group_weights[: self.max_groups])[0]
        wanted = [load_classes()[index] for index in classes]
        if not wanted and self.coloured and random.random() < self.coloured:
            wanted = [random.choice([emoji_class for emoji_class in load_classes() if emoji_class.coloured])]
        if self.pairs == "held-out" and number > 1 and not wanted:
            wanted = self._held_out_pair()
        choices: list[Choice] = []
        taken: set[tuple[str, str | None]] = set()
        while len(choices) < number:
            emoji_class = wanted.pop() if wanted else self._next_class()
            options = self._bank.options(emoji_class)
            if not options:
                continue  # none of the chosen styles has this class
            style, drawings = random.choice(options)
            drawing = random.choice(drawings)
            if (emoji_class.name, drawing.colour) in taken:
                continue
            beside = {choice.emoji_class.index for choice in choices}
            if self.pairs == "seen" and not partners()[emoji_class.index].isdisjoint(beside):
                continue
            taken.add((emoji_class.name, drawing.colour))
            count = random.choices((1, 2, 3, 4)[: self.max_count], self.count_weights[: self.max_count])[0]
            same = random.random() < 0.5  # all objects of the group look alike
            sprites = [
                self._bank.sprite(emoji_class, drawing, style, augment=self.augment)
                for _ in range(1 if same else count)
            ]
            choices.append(Choice(emoji_class, drawing, style, tuple(sprites * count)[:count]))
        return choices

    def _next_class(self) -> EmojiClass:
        """Deal classes from a shuffled deck: every class comes up once before any comes up again."""
        if not self._deck:
            self._deck = list(load_classes())
            self._random.shuffle(self._deck)
        return self._deck.pop()

    def _held_out_pair(self) -> list[EmojiClass]:
        """Return a held-out pair that the loaded styles have, in random order."""
        while True:
            pair = self._random.choice(held_out_pairs())
            if all(self._bank.options(load_classes()[index]) for index in pair):
                return [load_classes()[index] for index in self._random.sample(pair, 2)]

    def _render(self, choices: list[Choice], plan: list[list[Place]]) -> Scene | None:
        """Draw a planned scene; None when no background suits or the layout reads two ways."""
        pieces = [
            [
                Piece(sprite, place, self._random.random() < 0.5 and may_mirror(choice.emoji_class))
                for sprite, place in zip(choice.sprites, places, strict=True)
            ]
            for choice, places in zip(choices, plan, strict=True)
        ]
        image = self.background([piece for group in pieces for piece in group])
        if image is None:
            return None
        objects: list[SceneObject] = []
        groups: list[ObjectGroup] = []
        grid = self.size // PATCH
        labels = np.zeros((grid, grid), np.int16)
        best = np.full((grid, grid), np.uint8(255 * PATCH_SHARE))
        for number, choice in enumerate(choices):
            emoji_class, colour = choice.emoji_class, choice.drawing.colour
            boxes = []
            for piece in pieces[number]:
                alpha = paste(image, piece)
                _label(alpha, piece.place, labels, best, emoji_class.index + 1)
                box = visible_box(alpha, piece.place)
                boxes.append(box)
                objects.append(SceneObject(emoji_class.index, emoji_class.name, colour, box, number, choice.style))
            groups.append(ObjectGroup(emoji_class.index, emoji_class.name, colour, len(boxes), hull(boxes)))
        try:
            caption = caption_of(groups, self.size)
        except AmbiguousLayout:
            return None
        if self.augment:
            image = self._degrade(image)
        return Scene(image, tuple(groups), tuple(objects), caption, labels)

    def background(self, pieces: Sequence[Piece]) -> np.ndarray | None:
        """Return a background from which every sprite stands out; None when none was found."""
        for _ in range(BACKGROUND_TRIES):
            image = self._backgrounds.draw()
            if stand_out(image, pieces):
                return image
        return None

    def _degrade(self, image: np.ndarray) -> np.ndarray:
        """Spoil a picture as cameras and codecs do: tone, blur, noise, JPEG."""
        random = self._random
        if random.random() < 0.4:
            levels = LEVELS * random.uniform(0.75, 1.2) + random.uniform(-0.1, 0.1)
            levels = np.clip(levels, 0, 1) ** (2 ** random.uniform(-0.4, 0.4))
            image = cv2.LUT(image, (255 * levels).astype(np.uint8))
        if random.random() < 0.15:
            image = cv2.GaussianBlur(image, (3, 3), random.uniform(0.4, 1.1))
        if random.random() < 0.25:
            grain = random.choice(self._grain)
            image = cv2.add(image, grain, dtype=cv2.CV_8U)
        if random.random() < 0.15:
            _, code = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, random.randint(25, 90)))
            image = cv2.imdecode(code, cv2.IMREAD_COLOR)
        return image


def _label(alpha: np.ndarray, place: Place, labels: np.ndarray, best: np.ndarray, label: int) -> None:
    """Write ``label`` into the patches of which this sprite covers more than any before it.

    ``best``: uint8, like ``labels``; the coverage (255 = whole patch) that a sprite has to exceed.
    """
    top, left = place.y // PATCH, place.x // PATCH
    bottom, right = -(-(place.y + place.height) // PATCH), -(-(place.x + place.width) // PATCH)
    cover = np.zeros(((bottom - top) * PATCH, (right - left) * PATCH), np.uint8)
    y, x = place.y - top * PATCH, place.x - left * PATCH
    cover[y : y + place.height, x : x + place.width] = alpha
    share = cv2.resize(cover, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    window = np.s_[top:bottom, left:right]
    more = share > best[window]
    labels[window][more] = label
    best[window][more] = share[more]


def _grain(random: Random, size: int) -> list[np.ndarray]:
    """Return ready-made sensor noise, int16 [size, size, 3] each."""
    noise = np.random.default_rng(random.getrandbits(32))
    return [noise.normal(0, noise.uniform(3, 16), (size, size, 3)).astype(np.int16) for _ in range(16)]
