"""Short videos of sprites that move, grow, come and go, with everything true about them.

    generator = VideoGenerator(TRAIN_STYLES, seed=1)
    video = generator.video()          # video.frames, video.caption, video.tracks
    encode_video(video.frames, fps=8)  # the bytes of an MP4 file

Questions on them are in ``video_questions``. The same seed, arguments and calls give the same videos.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from random import Random

import av
import numpy as np

from demo.scenes.classes import DATA_DIR
from demo.scenes.generator import Choice, SceneGenerator
from demo.scenes.grammar import Box, ObjectGroup, noun_phrase
from demo.scenes.held_out import check_training_seed
from demo.scenes.layout import MARGIN, REFERENCE_SIDE, SIDE_RANGES, Cluster, Place, cluster_of
from demo.scenes.reference import class_of, hull
from demo.scenes.sprite_bank import Piece, may_mirror, paste, visible_box

DIRECTIONS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
ALONE = (*DIRECTIONS, *DIRECTIONS, "still", "grows", "shrinks", "appears", "disappears")  # moving is most frequent
MOTIONS = (*DIRECTIONS, "still", "grows", "shrinks", "appears", "disappears")
#: What two groups do, drawn with equal chance; "along" is a direction of their lanes.
TOGETHER = (("along", "still"), ("along", "along"), ("appears", "appears"))
FEWEST_FRAMES = 8  # for two groups to come one after the other
SMALLEST = 0.45  # of its full size: what grows starts there
LONGEST = 0.55  # of its lane: the most that a moving group takes up
STANDING_START = 0.2  # of the free way: where a movement starts and ends at most from the lane's ends
PLANS = 12  # tries to find a background for one choice of sprites
CRF = 16  # quality of H.264: lower is better; 16 is hard to tell from the original


@dataclass(frozen=True)
class Frame:
    """One picture of a video and the groups that are visible in it."""

    image: np.ndarray  # uint8 [size, size, 3]
    groups: tuple[ObjectGroup, ...]


@dataclass(frozen=True)
class Track:
    """One group through a video. ``boxes``: around all its objects, by frame; None while it is not there."""

    class_index: int
    name: str
    colour: str | None
    count: int
    motion: str  # one of MOTIONS
    style: str
    boxes: tuple[Box | None, ...]

    @property
    def first_frame(self) -> int:
        """Index of the first frame that shows it."""
        return next(index for index, box in enumerate(self.boxes) if box is not None)

    @property
    def phrase(self) -> str:
        """ "a dog", "three red apples"."""
        return noun_phrase(class_of(self), self.colour, self.count)


@dataclass(frozen=True)
class SceneVideo:
    """``frames`` uint8 [T, size, size, 3] RGB; ``tracks`` in the order in which the caption names them."""

    frames: np.ndarray
    tracks: tuple[Track, ...]
    caption: str

    @property
    def steady(self) -> bool:
        """True when every group is there in every frame."""
        return all(box is not None for track in self.tracks for box in track.boxes)

    @cached_property
    def pictures(self) -> tuple[Frame, ...]:
        """The frames one by one, each with what it shows."""
        return tuple(
            Frame(
                image,
                tuple(
                    ObjectGroup(track.class_index, track.name, track.colour, track.count, track.boxes[index])
                    for track in self.tracks
                    if track.boxes[index] is not None
                ),
            )
            for index, image in enumerate(self.frames)
        )


@dataclass(frozen=True)
class _Lane:
    """The part of the picture in which one group stays, pixels."""

    x: float
    y: float
    width: float
    height: float


class VideoGenerator:
    """Seeded generator of videos of one or two groups.

    ``frames`` (8 or more) pictures of ``size`` pixels each. May be changed between calls: ``two_groups`` (the
    chance of two) and ``alone`` (motions of a single group, of ``MOTIONS``, drawn with equal chance).
    ``pairs``, ``augment`` and ``folder`` are those of ``SceneGenerator``.
    Raises ``ValueError`` for fewer frames and whatever ``SceneGenerator`` raises it for.
    """

    def __init__(
        self,
        styles: Sequence[str],
        *,
        size: int = REFERENCE_SIDE,
        frames: int = 8,
        max_count: int = 3,
        augment: bool = False,
        seed: int = 0,
        pairs: str = "seen",
        folder: Path = DATA_DIR,
        backdrops: Path | None = None,
    ) -> None:
        if frames < FEWEST_FRAMES:
            raise ValueError(f"frames must be {FEWEST_FRAMES} or more, not {frames}")
        self.size, self.frames = size, frames
        self.two_groups = 0.4
        self.alone: Sequence[str] = ALONE
        self._random = Random(check_training_seed(seed) if augment else seed)
        self._scenes = SceneGenerator(
            styles,
            size=size,
            max_groups=2,
            max_count=max_count,
            augment=augment,
            seed=self._random.getrandbits(32),
            pairs=pairs,
            folder=folder,
            backdrops=backdrops,
        )
        self._scenes.count_weights = [0.6, 0.25, 0.1, 0.05]

    def restart(self, seed: int) -> None:
        """Go on with the random numbers of another seed: the next video depends on it alone, unless augmented."""
        self._random.seed(seed)
        self._scenes.restart(self._random.getrandbits(32))

    def video(self) -> SceneVideo:
        """Return one new video."""
        two = self._random.random() < self.two_groups
        self._scenes.group_weights = [0, 1] if two else [1, 0]
        while True:
            choices = self._scenes.choose()
            if two and choices[0].emoji_class is choices[1].emoji_class:
                continue  # "the heart moves": which one?
            for _ in range(PLANS):
                motions, lanes = self._plan(choices)
                films = [self._film(*planned) for planned in zip(choices, motions, lanes, strict=True)]
                if two and motions == ["appears", "appears"]:
                    films = self._one_after_the_other(films)
                background = self._background(films)
                if background is not None:
                    return self._render(choices, motions, films, background)

    def _plan(self, choices: Sequence[Choice]) -> tuple[list[str], list[_Lane]]:
        """Return what each group does and where."""
        random, room = self._random, self.size - 2 * MARGIN
        if len(choices) == 1:
            # Only one object grows, or shrinks: a group would change its distances, too.
            single = len(choices[0].sprites) == 1
            able = [motion for motion in self.alone if single or motion not in ("grows", "shrinks")]
            return [random.choice(able)], [_Lane(MARGIN, MARGIN, room, room)]
        beside = random.random() < 0.5  # lanes side by side, in which one moves up and down
        along = ("up", "down") if beside else ("left", "right")
        motions = [random.choice(along) if motion == "along" else motion for motion in random.choice(TOGETHER)]
        half = room / 2 - 1
        if beside:
            lanes = [_Lane(MARGIN, MARGIN, half, room), _Lane(MARGIN + half + 2, MARGIN, half, room)]
        else:
            lanes = [_Lane(MARGIN, MARGIN, room, half), _Lane(MARGIN, MARGIN + half + 2, room, half)]
        random.shuffle(lanes)
        return motions, lanes

    def _film(self, choice: Choice, motion: str, lane: _Lane) -> list[list[Piece]]:
        """Return the pieces of one group by frame; none while it is not there."""
        random = self._random
        mirrored = [random.random() < 0.5 and may_mirror(choice.emoji_class) for _ in choice.sprites]
        alone = lane.width == lane.height
        low, high = SIDE_RANGES[1 if alone else 2][len(choice.sprites)]
        side = random.uniform(low, high) * self.size / REFERENCE_SIDE
        cluster = cluster_of(random, [sprite.shape for sprite in choice.sprites], side)
        room_x = lane.width * (LONGEST if motion in ("left", "right") else 1)
        room_y = lane.height * (LONGEST if motion in ("up", "down") else 1)
        cluster = cluster.scaled(min(1.0, room_x / cluster.width, room_y / cluster.height))
        by_frame = self._places(cluster, motion, lane)
        first, last = 0, self.frames
        if motion == "appears":
            first = random.randint(2, self.frames // 2)
        elif motion == "disappears":
            last = random.randint(self.frames // 2, self.frames - 2)
        return [
            [Piece(*of_object) for of_object in zip(choice.sprites, places, mirrored, strict=True)]
            if first <= index < last
            else []
            for index, places in enumerate(by_frame)
        ]

    def _places(self, cluster: Cluster, motion: str, lane: _Lane) -> list[list[Place]]:
        random = self._random
        free_x, free_y = lane.width - cluster.width, lane.height - cluster.height
        x, y = lane.x + random.random() * free_x, lane.y + random.random() * free_y
        progress = [index / (self.frames - 1) for index in range(self.frames)]
        if motion in ("grows", "shrinks"):
            steps = progress if motion == "grows" else progress[::-1]
            scales = [SMALLEST + (1 - SMALLEST) * step for step in steps]
            return [
                cluster.scaled(scale).at(x + (1 - scale) / 2 * cluster.width, y + (1 - scale) / 2 * cluster.height)
                for scale in scales
            ]
        if motion not in DIRECTIONS:
            return [cluster.at(x, y)] * self.frames
        start, end = STANDING_START * random.random(), 1 - STANDING_START * random.random()
        if motion in ("left", "up"):
            start, end = end, start
        shares = [start + (end - start) * step for step in progress]
        if motion in ("left", "right"):
            return [cluster.at(lane.x + share * free_x, y) for share in shares]
        return [cluster.at(x, lane.y + share * free_y) for share in shares]

    def _one_after_the_other(self, films: list[list[list[Piece]]]) -> list[list[list[Piece]]]:
        """Let two groups that stand still appear a quarter of the video or more apart."""
        random, gap = self._random, self.frames // 4
        first = random.randint(1, self.frames // 2 - 1)
        second = random.randint(first + gap, self.frames - 2)
        return [
            [film[-1] if index >= begin else [] for index in range(self.frames)]
            for film, begin in zip(films, (first, second), strict=True)
        ]

    def _background(self, films: list[list[list[Piece]]]) -> np.ndarray | None:
        """Return a background that suits the first, middle and last picture of every group."""
        pieces = []
        for film in films:
            shown = [pictures for pictures in film if pictures]
            pieces += [*shown[0], *shown[len(shown) // 2], *shown[-1]]
        return self._scenes.background(pieces)

    def _render(
        self, choices: Sequence[Choice], motions: list[str], films: list[list[list[Piece]]], background: np.ndarray
    ) -> SceneVideo:
        frames = np.repeat(background[None], self.frames, 0)
        tracks = []
        for choice, motion, film in zip(choices, motions, films, strict=True):
            boxes: list[Box | None] = []
            for image, pieces in zip(frames, film, strict=True):
                found = [visible_box(paste(image, piece), piece.place) for piece in pieces]
                boxes.append(hull(found) if found else None)
            tracks.append(
                Track(
                    choice.emoji_class.index,
                    choice.emoji_class.name,
                    choice.drawing.colour,
                    len(choice.sprites),
                    motion,
                    choice.style,
                    tuple(boxes),
                )
            )
        return SceneVideo(frames, tuple(tracks), caption_of_tracks(tracks))


def doing(track: Track) -> str:
    """Return what a group does: "moves to the left", "stay still", "grows"."""
    third = "s" if track.count == 1 else ""
    if track.motion in DIRECTIONS:
        return f"move{third} {DIRECTIONS[track.motion]}"
    if track.motion == "still":
        return f"stay{third} still"
    return track.motion if track.count == 1 else track.motion.removesuffix("s")


def caption_of_tracks(tracks: Sequence[Track]) -> str:
    """Return the caption of one or two groups: "a dog moves up and two cats stay still"."""
    if len(tracks) == 2 and all(track.motion == "appears" for track in tracks):
        first, second = sorted(tracks, key=lambda track: track.first_frame)
        return f"{first.phrase} {doing(first)} before {second.phrase}"
    return " and ".join(f"{track.phrase} {doing(track)}" for track in tracks)


def encode_video(frames: np.ndarray, fps: int = 8) -> bytes:
    """Return frames (uint8 [T, h, w, 3] RGB, even height and width) as an MP4 file in H.264.

    Raises ``ValueError`` for other shapes.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[1] % 2 or frames.shape[2] % 2 or not len(frames):
        raise ValueError(f"frames must be uint8 [T, h, w, 3] with even height and width, not {list(frames.shape)}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": str(CRF)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
