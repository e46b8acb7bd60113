"""Questions on videos: about motion and order, and those that a model of single pictures can answer, too.

motion_questions(video, random, count=2)     # "in which direction does the dog move?" → "left"
zero_shot_questions(video, random, count=2)  # "how many dogs are there?" → "two"
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from demo.scenes.reference import absent_class, alike, class_of, noun
from demo.scenes.videos import DIRECTIONS, SceneVideo, Track
from demo.texts.questions import Question, question_of_kind

#: Kinds of ``scene_questions`` whose answers need no time. The picture's questions are asked of the video.
ZERO_SHOT_KINDS = ("what", "count", "where")
TRIES = 12  # per question that is wanted
CROSSED = {
    "left": ("right", "up", "down"),
    "right": ("left", "up", "down"),
    "up": ("down", "left", "right"),
    "down": ("up", "left", "right"),
}

QuestionAndAnswer = tuple[str, str] | None


def zero_shot_questions(video: SceneVideo, random: Random, count: int) -> list[Question]:
    """Return up to ``count`` different questions with the same answer in every single frame; kinds by turns.

    None of a video in which something comes or goes.
    """
    if not video.steady:
        return []
    found: dict[str, Question] = {}
    kinds: list[str] = []
    for _ in range(TRIES * count):
        if len(found) >= count:
            break
        kinds = kinds or random.sample(ZERO_SHOT_KINDS, len(ZERO_SHOT_KINDS))
        kind, dice = kinds.pop(), random.getrandbits(32)
        # The same dice ask the same of every frame as long as the frames look alike to the question.
        asked = {question_of_kind(picture, Random(dice), kind) for picture in video.pictures}
        if len(asked) == 1 and None not in asked:
            question = asked.pop()
            found.setdefault(question.text, question)
    return list(found.values())


def motion_questions(video: SceneVideo, random: Random, count: int) -> list[Question]:
    """Return up to ``count`` different questions of the kinds "motion" and "order"."""
    found: dict[str, Question] = {}
    for _ in range(TRIES * count):
        if len(found) >= count:
            break
        kind, ask = random.choice(ASKERS)
        asked = ask(video, random)
        if asked is not None:
            found.setdefault(asked[0], Question(kind, *asked))
    return list(found.values())


def _phrase(track: Track) -> str:
    return f"the {noun(class_of(track), track.count)}"


def _clear(video: SceneVideo) -> bool:
    """Return whether each group is told from the other by its name."""
    return all(other.name not in alike(track.name) for track in video.tracks for other in video.tracks)


def _do(track: Track) -> str:
    return "does" if track.count == 1 else "do"


def _ask_direction(video: SceneVideo, random: Random) -> QuestionAndAnswer:
    moving = [track for track in video.tracks if track.motion in DIRECTIONS]
    if not moving or not _clear(video):
        return None
    track = random.choice(moving)
    upright = track.motion in ("up", "down")
    pair = "{do} {the} move up or down?" if upright else "{do} {the} move to the left or to the right?"
    form = random.choice(("in which direction {do} {the} move?", "in what direction {be} {the} moving?", pair))
    be = "is" if track.count == 1 else "are"
    return form.format(do=_do(track), be=be, the=_phrase(track)), track.motion


def _ask_if_so(video: SceneVideo, random: Random) -> QuestionAndAnswer:
    track, truth = random.choice(video.tracks), random.random() < 0.5
    if track.motion not in DIRECTIONS or not _clear(video):
        return None
    direction = track.motion if truth else random.choice((CROSSED[track.motion][0], *CROSSED[track.motion]))
    return f"{_do(track)} {_phrase(track)} move {DIRECTIONS[direction]}?", "yes" if truth else "no"


def _ask_if_moving(video: SceneVideo, random: Random) -> QuestionAndAnswer:
    track = random.choice(video.tracks)
    if track.motion not in (*DIRECTIONS, "still") or not _clear(video):
        return None
    if track.motion != "still" and random.random() < 0.6:
        return None  # most things move: "yes" would be too good a guess
    moving = track.motion != "still"
    if random.random() < 0.5:
        return f"{'is' if track.count == 1 else 'are'} {_phrase(track)} moving?", "yes" if moving else "no"
    return f"{_do(track)} {_phrase(track)} stay still?", "no" if moving else "yes"


def _ask_what_does(video: SceneVideo, random: Random) -> QuestionAndAnswer:
    track = random.choice(video.tracks)
    if track.motion in DIRECTIONS:
        if sum(other.motion in DIRECTIONS for other in video.tracks) > 1:
            if any(other.motion == track.motion for other in video.tracks if other is not track):
                return None
            return f"what moves {DIRECTIONS[track.motion]}?", track.name
        return random.choice(("what moves?", "what is moving?", f"what moves {DIRECTIONS[track.motion]}?")), track.name
    if sum(other.motion == track.motion for other in video.tracks) > 1:
        return None
    return ("what stays still?" if track.motion == "still" else f"what {track.motion}?"), track.name


def _ask_order(video: SceneVideo, random: Random) -> QuestionAndAnswer:
    if len(video.tracks) != 2 or any(track.motion != "appears" for track in video.tracks) or not _clear(video):
        return None
    first, last = sorted(video.tracks, key=lambda track: track.first_frame)
    chance = random.random()
    if chance < 0.25:
        return "what appears first?", first.name
    if chance < 0.5:
        return "what appears last?", last.name
    words, truth = random.choice(("before", "after")), random.random() < 0.5
    one, two = (first, last) if truth == (words == "before") else (last, first)
    return f"{_do(one)} {_phrase(one)} appear {words} {_phrase(two)}?", "yes" if truth else "no"


def _ask_if_there(video: SceneVideo, random: Random) -> QuestionAndAnswer:
    """Of what comes or goes: whether it, or something else, does."""
    track, truth = random.choice(video.tracks), random.random() < 0.5
    if track.motion not in ("appears", "disappears") or not _clear(video):
        return None
    emoji_class = class_of(track) if truth else absent_class(video.pictures[track.first_frame].groups, random)
    if emoji_class.name in {other.name for other in video.tracks if other is not track}:
        return None
    thing, do = (noun(emoji_class, track.count), _do(track))
    article = "a " if track.count == 1 else ""
    if article and thing[0] in "aeiou":
        article = "an "
    return f"{do} {article}{thing} {track.motion.removesuffix('s')}?", "yes" if truth else "no"


ASKERS: tuple[tuple[str, Callable[[SceneVideo, Random], QuestionAndAnswer]], ...] = (
    ("motion", _ask_direction),
    ("motion", _ask_if_so),
    ("motion", _ask_if_moving),
    ("motion", _ask_what_does),
    ("order", _ask_order),
    ("order", _ask_order),
    ("motion", _ask_if_there),
)
