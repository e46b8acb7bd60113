"""What the public models answer: one class per kind of answer."""

from __future__ import annotations

from dataclasses import dataclass

#: What the probabilities of `entail` stand for, in their order.
ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")


@dataclass(frozen=True)
class Caption:
    text: str
    score: float  # log-probability over the length penalty; the higher the better
    token_ids: list[int]  # from [CLS], padding removed


@dataclass(frozen=True)
class Answer:
    text: str
    score: float
    token_ids: list[int]


@dataclass(frozen=True)
class Match:
    score: float  # logit of "this text fits this image"
    similarity: float  # cosine of the two embeddings


@dataclass(frozen=True)
class Grounding:
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image as shown upright
    token_ids: list[int]


@dataclass(frozen=True)
class Verdict:
    label: str  # "true" or "false"
    probability: float


@dataclass(frozen=True)
class Entailment:
    label: str  # of ENTAILMENT_LABELS
    probabilities: tuple[float, ...]  # of each of them
