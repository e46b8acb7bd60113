"""How likely given texts are as the decoder's answer: the ranking of candidates in VQA.

As published for a closed list of answers: of all candidates the likeliest by their first token are kept, and of
those the log-probabilities of all tokens are summed; the published ranking adds that of the first token once
more (`rank_answer` of the authors' model_vqa_mplug.py). That is work for the decoder, so it runs on
the decode loop's thread, in pieces between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mplug.contract import DECODER_SCORE
from mplug.decoding.loop import NOT_A_NUMBER
from mplug.errors import StageError
from mplug.runtime.interface import ANY_DEVICE, Graph, StageInfo, open_graph

#: Candidates that are scored to their end, as published.
MAX_RANKED = 128
#: Candidates per run: the active searches wait for it, and its logits take rows × tokens × vocabulary.
ROWS_PER_PIECE = 16
#: Score of a candidate that was not kept.
NOT_RANKED = -np.inf


def open_score_graph(folder: Path, device: str = ANY_DEVICE) -> Graph | None:
    """The graph that scores candidates, of a stage's version folder; None where it was not built."""
    if not StageInfo.read(folder).sizes.get("ranks_candidates"):
        return None
    return open_graph(folder, DECODER_SCORE.name, device)


@dataclass
class CandidateScores:
    """One ranking to run: a `mplug.decoding.loop.Job`. Answered through exactly one of `done` and `failed`."""

    graph: Graph
    encoder_states: np.ndarray  #: `[A, W]`
    encoder_mask: np.ndarray  #: `[A]` int32
    candidates: np.ndarray  #: `[n, L]` int32, from `[CLS]` to `[SEP]`, padded with 0
    done: Callable[[np.ndarray], None]  #: takes the scores `[n]` fp32
    failed: Callable[[BaseException], None]
    cancelled: Callable[[], bool] = field(default=lambda: False)
    first_token_weight: int = 1  #: how many times the log-probability of the first token counts
    _pieces: Iterator[None] | None = None

    def advance(self) -> bool:
        """Run one piece; True when it was the last and `done` was called."""
        if self._pieces is None:
            self._pieces = self._score()
        return next(self._pieces, True) is True

    def _score(self) -> Iterator[None]:
        scores = np.full(len(self.candidates), NOT_RANKED, np.float32)
        kept = np.arange(len(self.candidates))
        if len(kept) > MAX_RANKED:
            first = self._run(self.candidates[:1, :1], self.candidates[None, None, :, 1])[0, 0]  # [n]
            kept = np.argsort(-first, kind="stable")[:MAX_RANKED]
            yield
        for start in range(0, len(kept), ROWS_PER_PIECE):
            rows = kept[start : start + ROWS_PER_PIECE]
            ids = self.candidates[rows]
            ids = ids[:, : (ids != 0).sum(1).max()]
            found = self._run(ids[:, :-1], ids[:, 1:, None])[..., 0]  # [rows, L - 1]
            scores[rows] = np.where(ids[:, 1:] != 0, found, 0.0).sum(1) + (self.first_token_weight - 1) * found[:, 0]
            yield
        if np.isnan(scores).any():
            raise StageError(NOT_A_NUMBER)
        self.done(scores)

    def _run(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self.graph(
            {
                "TOKENS": np.ascontiguousarray(tokens),
                "TARGETS": np.ascontiguousarray(targets),
                "ENCODER_STATES": self.encoder_states[None],
                "ENCODER_MASK": self.encoder_mask[None],
            }
        )["LOG_PROBABILITIES"]
