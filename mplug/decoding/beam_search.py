"""Beam search over one request, exactly as the published code searches: the reference.

Served searches run in the compiled step (`mplug.network.beam_step`), for all slots at once; tests compare them
with this one. The caller runs the decoder and hands in, per beam, its likeliest next tokens with their
log-probabilities; the search answers with the beams to go on with, and which beam each of them continues.

Source of the rules: the published implementation; `score / ((5 + t) / 6)^alpha` is the length penalty
of Wu et al. (arXiv 1609.08144, equation 14).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SearchOptions:
    """What one request asks of the search.

    `min_length` and `max_length` count generated tokens, `[SEP]` included, `[CLS]` and prompt not.
    """

    num_beams: int
    min_length: int
    max_length: int
    num_return: int
    length_penalty: float
    end_id: int


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence: ids behind the prompt, and its log-probability over its length penalty."""

    token_ids: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Continuation:
    """The beams after a step, each `[M]`: the beam it continues, and the token it adds."""

    parents: np.ndarray
    tokens: np.ndarray


class BeamSearch:
    """State of one search. Call `advance` until it returns None, then read `best`."""

    def __init__(self, options: SearchOptions) -> None:
        self.options = options
        self.length = 0  # tokens generated so far
        # Every beam starts from the same prefix; only the first may continue it, or all would be alike.
        self._scores = np.full(options.num_beams, -np.inf, np.float32)
        self._scores[0] = 0.0
        self._sequences = np.zeros((options.num_beams, options.max_length), np.int32)
        self._hypotheses: list[Hypothesis] = []

    @property
    def end_blocked(self) -> bool:
        """Whether the next token may not be the end token yet."""
        return self.length < self.options.min_length

    def advance(self, next_tokens: np.ndarray, log_probabilities: np.ndarray) -> Continuation | None:
        """Take one step.

        Args:
            next_tokens: `[M, K]` the K ≥ M likeliest tokens after each beam.
            log_probabilities: `[M, K]` theirs, the end token's already lowered where it is blocked.
        Returns:
            The beams to go on with, or None when the search is over.
        """
        beams, candidates = next_tokens.shape
        totals = (self._scores[:, None] + log_probabilities).reshape(-1)
        penalty = np.float32(((5 + self.length + 1) / 6) ** self.options.length_penalty)
        best = np.argsort(-totals, kind="stable")[:beams]
        parents, tokens = best // candidates, next_tokens.reshape(-1)[best].astype(np.int32)
        self._scores = totals[best]
        self._sequences = self._sequences[parents]
        self._sequences[:, self.length] = tokens
        self.length += 1
        ranked = self._scores / penalty
        finished = (tokens == self.options.end_id) | (self.length == self.options.max_length)
        over = bool(finished[0])
        # A finished beam goes on as a beam like any other; when the best one is finished all are noted.
        for beam in range(beams) if over else np.flatnonzero(finished):
            self._hypotheses.append(
                Hypothesis(tuple(self._sequences[beam, : self.length].tolist()), float(ranked[beam]))
            )
        return None if over else Continuation(parents, tokens)

    def best(self) -> list[Hypothesis]:
        """The `num_return` best hypotheses, best first."""
        return sorted(self._hypotheses, key=lambda hypothesis: -hypothesis.score)[: self.options.num_return]
