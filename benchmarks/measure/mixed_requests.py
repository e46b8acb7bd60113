"""Requests of every kind to the model `caption`: good ones of all shapes, and bad ones with the error each deserves.

Drawn from a seed, so that a run can be had again; used by the soak and by the load test.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from benchmarks.measure.pictures import picture
from clients.client import calls
from clients.client.calls import Call, Caption

#: Beams asked for, by how often: most clients leave the default.
BEAMS_CHOICES = (1, 2, 3, 5, 5, 5)
LENGTHS = range(1, 21)
PROMPTS = ("a", "a b", "two")

#: What a request is to end with, besides a good answer for those that may also come too early or too late.
OK, INVALID, CANCELLED, LATE = "OK", "INVALID_ARGUMENT", "CANCELLED", "DEADLINE_EXCEEDED"
KINDS = {"good": 60, "bad": 20, "cancelled": 15, "impatient": 5}  # percent
#: How long before a request is cancelled, or its client loses patience, seconds at most.
CANCEL_WITHIN, PATIENCE = 0.5, 0.05


@dataclass(frozen=True)
class Mixed:
    """One request and what may become of it."""

    kind: str
    call: Call[list[Caption]]
    expected: tuple[str, ...]
    protocol: str
    answers: int = 1  #: captions that a good answer holds
    names: str = ""  #: what the error's message must name
    after: float = 0.0  #: seconds until it is cancelled, or until its client gives up


def draw(number: int, seed: int, pictures: Sequence[bytes]) -> list[Mixed]:
    """Draw `number` requests of all kinds."""
    chance = random.Random(seed)
    kinds = chance.choices(list(KINDS), weights=list(KINDS.values()), k=number)
    return [_draw_one(kind, chance, pictures) for kind in kinds]


def _draw_one(kind: str, chance: random.Random, pictures: Sequence[bytes]) -> Mixed:
    image = chance.choice(pictures)
    protocol = chance.choice(("grpc", "grpc", "grpc", "http"))
    if kind == "bad":
        names, call = chance.choice(BAD)(image)
        return Mixed(kind, call, (INVALID,), protocol, names=names)
    options = good_options(chance)
    call = calls.caption(image, chance.choice((None, None, *PROMPTS)), **options)
    answers = options.get("num_return", 1)
    if kind == "cancelled":  # over gRPC: HTTP tells nobody that its client has gone
        return Mixed(kind, call, (OK, CANCELLED), "grpc", answers, after=chance.uniform(0, CANCEL_WITHIN))
    if kind == "impatient":
        return Mixed(kind, call, (OK, LATE), "grpc", answers, after=chance.uniform(PATIENCE / 10, PATIENCE))
    return Mixed(kind, call, (OK,), protocol, answers)


def good_options(chance: random.Random) -> dict[str, Any]:
    """Return options of a search that any captioner allows."""
    beams, most = chance.choice(BEAMS_CHOICES), chance.choice(LENGTHS)
    options: dict[str, Any] = {"num_beams": beams, "max_length": most, "min_length": chance.randint(0, most)}
    if chance.random() < 0.3:
        options["num_return"] = chance.randint(1, beams)
    if chance.random() < 0.2:
        options["length_penalty"] = round(chance.uniform(-0.5, 1.5), 2)
    return options


def _damaged(image: bytes) -> bytes:
    return image[: len(image) // 3]


def _huge() -> bytes:
    """Return a picture with more pixels than are accepted, in few bytes."""
    stream = io.BytesIO()
    Image.new("1", (16_000, 16_000)).save(stream, "PNG")
    return stream.getvalue()


_HUGE = _huge()
_Bad = Callable[[bytes], tuple[str, Call[list[Caption]]]]

#: Each makes a bad request of a picture: the input that the answer must name, and the call.
BAD: tuple[_Bad, ...] = (
    lambda image: ("IMAGE", calls.caption(b"this is no picture")),
    lambda image: ("IMAGE", calls.caption(b"")),
    lambda image: ("IMAGE", calls.caption(_damaged(image))),
    lambda image: ("IMAGE", calls.caption(_HUGE)),
    lambda image: ("NUM_BEAMS", calls.caption(image, num_beams=0)),
    lambda image: ("NUM_BEAMS", calls.caption(image, num_beams=1000)),
    lambda image: ("MIN_LENGTH", calls.caption(image, min_length=9, max_length=3)),
    lambda image: ("MAX_LENGTH", calls.caption(image, max_length=-1)),
    lambda image: ("MAX_LENGTH", calls.caption(image, max_length=100_000)),
    lambda image: ("NUM_RETURN", calls.caption(image, num_beams=2, num_return=3)),
    lambda image: ("LENGTH_PENALTY", calls.caption(image, length_penalty=math.nan)),
    lambda image: ("PROMPT", calls.caption(image, "a " * 200)),
)


def soak_pictures(number: int) -> list[bytes]:
    """Return pictures to choose from: some requests share one, and so use the response cache."""
    return [picture(seed) for seed in range(number)]
