"""What the public models answer, as Python values; `mplug.pipeline` returns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mplug.contract import Value


@dataclass(frozen=True)
class Generated:
    """A caption or an answer."""

    text: str
    score: float  #: log-probability over the length penalty; of ranked candidates, a probability
    token_ids: list[int]  #: from `[CLS]`, padding removed

    @classmethod
    def read(cls, outputs: Mapping[str, Value], text: str) -> list[Generated]:
        """Read the outputs of `caption` or `vqa`; `text` names the output that holds the texts."""
        rows = zip(outputs[text], outputs["SCORE"].tolist(), outputs["TOKEN_IDS"], strict=True)
        return [cls(words.decode(), score, ids[ids != 0].tolist()) for words, score, ids in rows]


@dataclass(frozen=True)
class Match:
    """How well a text fits a picture."""

    score: float  #: logit of the matching head
    similarity: float  #: cosine of the two embeddings

    @classmethod
    def read(cls, outputs: Mapping[str, Value]) -> list[Match]:
        """Read the outputs of `match`."""
        return [cls(*pair) for pair in zip(outputs["SCORE"].tolist(), outputs["SIMILARITY"].tolist(), strict=True)]


@dataclass(frozen=True)
class Grounding:
    """Where an expression points."""

    box: tuple[float, float, float, float]  #: x0, y0, x1, y1 in pixels of the picture as shown upright
    token_ids: list[int]

    @classmethod
    def read(cls, outputs: Mapping[str, Value]) -> Grounding:
        """Read the outputs of `ground`."""
        return cls(tuple(outputs["BOX"].tolist()), outputs["BOX_TOKENS"].tolist())


@dataclass(frozen=True)
class Verdict:
    """Whether a statement is true of two pictures."""

    label: str  #: "true" or "false"
    probability: float  #: of the label

    @classmethod
    def read(cls, outputs: Mapping[str, Value]) -> Verdict:
        """Read the outputs of `nlvr`."""
        return cls(outputs["LABEL"][0].decode(), float(outputs["PROBABILITY"][0]))


@dataclass(frozen=True)
class Entailment:
    """Whether a picture entails a hypothesis."""

    label: str  #: of `mplug.contract.ENTAILMENT_LABELS`
    probabilities: tuple[float, ...]  #: of each of them

    @classmethod
    def read(cls, outputs: Mapping[str, Value]) -> Entailment:
        """Read the outputs of `entail`."""
        return cls(outputs["LABEL"][0].decode(), tuple(outputs["PROBABILITY"].tolist()))
