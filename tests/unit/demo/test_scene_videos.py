"""Videos of moving sprites: what they claim is measured again in their frames, before and after encoding."""

import re
from collections import Counter
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
from scene_reading import NOUNS, at_place, centre, holds

from demo.scenes.grammar import COUNT_WORDS, parse_caption
from demo.scenes.sprites import TRAIN_STYLES
from demo.scenes.videos import MOTIONS, VideoGenerator, encode_video
from demo.texts.video_questions import motion_questions, zero_shot_questions
from demo.texts.vocabulary import build_vocabulary
from mplug.inputs.video import decode_video

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}


@pytest.fixture(scope="module")
def videos():
    generator = VideoGenerator(TRAIN_STYLES, seed=41)
    return [generator.video() for _ in range(160)]


@pytest.fixture(scope="module")
def asked(videos):
    random = Random(1)
    return [(video, question) for video in videos for question in motion_questions(video, random, 4)]


def motion_of(track):
    """What a track does, by its boxes alone."""
    there = [box is not None for box in track.boxes]
    if not all(there):
        assert there == sorted(there) or there == sorted(there, reverse=True)
        return "appears" if there[-1] else "disappears"
    first, last = track.boxes[0], track.boxes[-1]
    growth = (last[2] - last[0]) / (first[2] - first[0])
    if growth > 1.5 or growth < 0.67:
        return "grows" if growth > 1 else "shrinks"
    way = np.subtract(centre(last), centre(first))
    axis = int(np.abs(way).argmax())
    if abs(way[axis]) < 1:
        return "still"
    assert abs(way[axis]) > 15 and abs(way[1 - axis]) < 1.5
    steps = np.diff([centre(box)[axis] for box in track.boxes])
    assert (np.sign(steps) == np.sign(way[axis])).all()
    return next(name for name, direction in DIRECTIONS.items() if direction == (axis, np.sign(way[axis])))


def test_tracks_do_what_they_say(videos):
    for video in videos:
        assert video.frames.shape == (8, 128, 128, 3) and video.frames.dtype == np.uint8
        assert [track.motion for track in video.tracks] == [motion_of(track) for track in video.tracks], video.caption
    assert {track.motion for video in videos for track in video.tracks} == set(MOTIONS)


def test_frames_show_the_tracks(videos):
    """Between two frames nothing changes but inside the boxes, and what comes or goes changes there."""
    for video in videos[:80]:
        for index in range(7):
            changed = np.abs(video.frames[index + 1].astype(int) - video.frames[index]).max(-1) > 20
            outside = changed.copy()
            for track in video.tracks:
                before, after = track.boxes[index : index + 2]
                for box in filter(None, (before, after)):
                    x0, y0, x1, y1 = map(int, box)
                    outside[max(0, y0 - 3) : y1 + 3, max(0, x0 - 3) : x1 + 3] = False
                if (before is None) != (after is None):
                    x0, y0, x1, y1 = map(int, before or after)
                    assert changed[y0:y1, x0:x1].mean() > 0.15
            assert not outside.any(), video.caption


def test_groups_stay_apart(videos):
    for one, two in (video.tracks for video in videos if len(video.tracks) == 2):
        for a, b in zip(one.boxes, two.boxes, strict=True):
            if a and b:
                assert any(holds(a, words, b) for words in ("to the left of", "to the right of", "above", "below"))


def test_captions_name_all_groups_and_what_they_do(videos):
    for video in videos:
        named = [(group.name, group.colour, group.count) for group in parse_caption(video.caption)]
        assert sorted(map(str, named)) == sorted(str((t.name, t.colour, t.count)) for t in video.tracks)
        if len(video.tracks) == 2 and video.tracks[0].motion == "appears":
            first = min(video.tracks, key=lambda track: track.first_frame)
            assert named[0][0] == first.name and " before " in video.caption
            continue
        for part, track in zip(video.caption.split(" and "), video.tracks, strict=True):
            single = track.count == 1
            assert track.motion.removesuffix("" if single else "s") in part, video.caption
            assert ("moves" in part) == (track.motion in DIRECTIONS and single), video.caption


def track_of(video, phrase):
    name = NOUNS[re.sub(r"^(the|a|an) ", "", phrase)][0]
    return next((track for track in video.tracks if track.name == name), None)


def answer(video, text):
    """The answer to a question on motion or order, by the boxes."""
    motions = {track.name: motion_of(track) for track in video.tracks}
    if match := re.fullmatch(r"what (?:moves|is moving)(?: to the| )? ?(left|right|up|down)?\?", text):
        (name,) = [n for n, motion in motions.items() if motion in ([match[1]] if match[1] else DIRECTIONS)]
        return name
    if match := re.fullmatch(r"what (stays still|grows|shrinks|appears|disappears)\?", text):
        (name,) = [n for n, motion in motions.items() if motion == match[1].split()[-1]]
        return name
    if match := re.fullmatch(r"what appears (first|last)\?", text):
        ordered = sorted(video.tracks, key=lambda track: [box is None for box in track.boxes].count(True))
        assert ordered[0].boxes != ordered[1].boxes
        return ordered[0 if match[1] == "first" else 1].name
    if match := re.fullmatch(r"do(?:es)? (.+) appear (before|after) (.+)\?", text):
        late = [[box is None for box in track_of(video, match[i]).boxes].count(True) for i in (1, 3)]
        assert late[0] != late[1]
        return "yes" if (late[0] < late[1]) == (match[2] == "before") else "no"
    if match := re.fullmatch(r"(?:do|does) (.+) move (?:to the (left|right)|(up|down))\?", text):
        return "yes" if motions[track_of(video, match[1]).name] == (match[2] or match[3]) else "no"
    if match := re.fullmatch(r"(?:do|does|is|are) (.+) (stay still|moving)\?", text):
        return "yes" if (motions[track_of(video, match[1]).name] == "still") == ("still" in match[2]) else "no"
    if match := re.fullmatch(r"do(?:es)? (.+) (appear|disappear)\?", text):
        track = track_of(video, match[1])
        return "yes" if track and motions[track.name] == match[2] + "s" else "no"
    match = re.fullmatch(r"(?:in (?:which|what) direction )?(?:do|does|is|are) (.+?) (?:move|moving).*\?", text)
    return motions[track_of(video, match[1]).name]


def test_questions_on_motion_are_answered_right(asked):
    assert len(asked) > 300
    for video, question in asked:
        assert answer(video, question.text) == question.answer, (video.caption, question)


def test_answers_on_motion_are_balanced(asked):
    answers = Counter(question.answer for _, question in asked)
    assert 0.4 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.6
    assert min(answers[direction] for direction in DIRECTIONS) > 10
    assert {question.kind for _, question in asked} == {"motion", "order"}


@dataclass(frozen=True)
class Boxed:
    """A group's box, for the reader of scenes."""

    box: tuple


def test_zero_shot_answers_hold_in_every_frame(videos):
    kinds = Counter()
    for video in videos:
        questions = zero_shot_questions(video, Random(2), 4)
        assert video.steady or not questions
        for question in questions:
            kinds[question.kind] += 1
            if question.kind == "count":
                match = re.fullmatch(r"how many (.+?) (?:are there|are in the picture|can you see)\?", question.text)
                counts = {track.name: track.count for track in video.tracks}
                number = counts.get(NOUNS.get(match[1], (None,))[0], 0)
                if match[1] in ("animals", "vehicles", "shapes", "objects", "things"):
                    continue  # read in the questions' own test
                assert question.answer == COUNT_WORDS[number]
            elif question.text.startswith("where"):
                track = track_of(video, re.fullmatch(r"where (?:is|are) (.+)\?", question.text)[1])
                for picture, box in zip(video.pictures, track.boxes, strict=True):
                    assert at_place(picture, question.answer, [Boxed(box)])
            elif match := re.fullmatch(r"what is (to the left of|to the right of|above|below) (.+)\?", question.text):
                reference = track_of(video, match[2])
                (other,) = [track for track in video.tracks if track is not reference]
                assert other.name == question.answer
                assert all(holds(a, match[1], b) for a, b in zip(other.boxes, reference.boxes, strict=True))
            elif question.kind == "what":
                assert question.answer in {track.name for track in video.tracks}
    assert min(kinds[kind] for kind in ("what", "count", "where")) > 20


def test_texts_are_whole_words(videos, asked):
    tokens = set(build_vocabulary())
    texts = [video.caption for video in videos] + [f"{q.text} {q.answer}" for _, q in asked]
    for text in texts:
        assert set(text.replace("?", " ?").replace(",", " ,").split()) <= tokens, text


def test_an_encoded_video_shows_the_same(videos):
    for video in videos[:5]:
        data = encode_video(video.frames, fps=8)
        assert len(data) < 60_000
        decoded = np.stack([np.asarray(picture) for picture in decode_video(data, 8)])
        assert decoded.shape == video.frames.shape
        # Each frame is nearest to its own original: none was lost, doubled or put elsewhere.
        error = np.abs(decoded.astype(float) - video.frames).mean((1, 2, 3))
        assert error.max() < 12
        if any(track.motion in DIRECTIONS for track in video.tracks):
            for index, picture in enumerate(decoded):
                assert np.abs(picture - video.frames.astype(float)).mean((1, 2, 3)).argmin() == index


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(ValueError, match=r"even height and width, not \[2, 31, 32, 3\]"):
        encode_video(np.zeros((2, 31, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="frames must be 8 or more, not 4"):
        VideoGenerator(("noto",), frames=4)


def test_the_seed_fixes_everything():
    first, again = (VideoGenerator(("noto",), seed=5, augment=True).video() for _ in range(2))
    assert (first.frames == again.frames).all() and first.tracks == again.tracks and first.caption == again.caption
    assert VideoGenerator(("noto",), seed=6).video().caption != first.caption
