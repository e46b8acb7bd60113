"""What the steps chose, by step, and the finished sequences that come of it.

The search itself runs in the compiled step. The host keeps the choices and looks at a request's only when its
search has ended: a beam's tokens are found by walking back along the parents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mplug.decoding.beam_search import Hypothesis, SearchOptions
from mplug.runtime.interface import StepChoices
from mplug.runtime.room import Room


@dataclass(frozen=True)
class EndedSearch:
    """A search whose last step is in the log."""

    slot: int
    first: int  #: number of the step that chose its first token
    last: int  #: number of the step that ended it
    options: SearchOptions


class SearchLog:
    """Choices of the latest steps for every slot: rings, indexed by a step's number modulo their length."""

    def __init__(self) -> None:
        self.steps = 0  #: recorded since the start; also the number of the next step
        self._allocate(0, 0, 0)

    def _allocate(self, slots: int, length: int, beams: int) -> None:
        shape = (slots, length, beams)
        self._parents, self._tokens = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self._scores = np.zeros(shape, np.float32)

    def reserve(self, room: Room, chunk: int) -> None:
        """Keep as many steps as a request in this room takes, and `chunk` more, without losing what is there."""
        old = (self._parents, self._tokens, self._scores)
        slots, length, beams = old[0].shape
        if slots >= room.slots and length >= room.positions + chunk and beams >= room.columns:
            return
        self._allocate(max(slots, room.slots), max(length, room.positions + chunk), max(beams, room.columns))
        numbers = np.arange(max(0, self.steps - length), self.steps)
        for new, held in zip((self._parents, self._tokens, self._scores), old, strict=True):
            new[:slots, numbers % new.shape[1], :beams] = held[:, numbers % length] if length else 0

    def append(self, choices: StepChoices) -> None:
        """Record one step of the first slots."""
        slots, beams = choices.tokens.shape
        row = self.steps % self._tokens.shape[1]
        self._parents[:slots, row, :beams] = choices.parents
        self._tokens[:slots, row, :beams] = choices.tokens
        self._scores[:slots, row, :beams] = choices.scores
        self.steps += 1

    def move(self, source: int, target: int) -> None:
        """Follow a request to another slot."""
        for array in (self._parents, self._tokens, self._scores):
            array[target] = array[source]

    def best(self, ended: Sequence[EndedSearch]) -> list[list[Hypothesis]]:
        """Return the best hypotheses of each search, best first, as many as it asks for.

        A beam that chose the end token is a hypothesis, and so is every beam of the last step. Equal scores: the one
        that ended first, then the lower beam.
        """
        slots, first, last, beams, wanted, end_ids = np.array(
            [
                (one.slot, one.first, one.last, one.options.num_beams, one.options.num_return, one.options.end_id)
                for one in ended
            ]
        ).T
        longest = int((last - first).max()) + 1  # L
        numbers = last[:, None] + np.arange(1 - longest, 1)  # [n, L]: all end in the last column
        rows = (slots[:, None], numbers % self._tokens.shape[1])
        parents, tokens, scores = self._parents[rows], self._tokens[rows], self._scores[rows]  # [n, L, M]
        length = numbers - first[:, None]  # tokens chosen before each
        exponents = np.array([one.options.length_penalty for one in ended])[:, None]
        penalties = (((5 + np.maximum(length, 0) + 1) / 6) ** exponents).astype(np.float32)
        scores = scores / penalties[:, :, None]
        noted = (tokens == end_ids[:, None, None]) & (length >= 0)[:, :, None]
        noted[:, -1] = True
        noted &= np.arange(tokens.shape[2]) < beams[:, None, None]
        searches, columns, chosen = _best_of_each(noted, scores, wanted)
        sequences = _walk_back(parents, tokens, searches, columns, chosen)
        found: list[list[Hypothesis]] = [[] for _ in ended]
        starts = longest - 1 - (last - first)
        values = scores[searches, columns, chosen].tolist()
        for search, column, ids, score in zip(searches.tolist(), columns.tolist(), sequences, values, strict=True):
            found[search].append(Hypothesis(tuple(ids[starts[search] : column + 1].tolist()), score))
        return found


def _best_of_each(
    noted: np.ndarray, scores: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (search, column, beam) of the `wanted` best scores of each search among those noted, `[n, L, M]`."""
    searches, columns, beams = np.nonzero(noted)
    order = np.lexsort((-scores[searches, columns, beams], searches))  # stable: first ended, then lower beam
    searches = searches[order]
    place = np.arange(len(searches)) - np.searchsorted(searches, searches)  # within its search
    kept = place < wanted[searches]
    return searches[kept], columns[order][kept], beams[order][kept]


def _walk_back(
    parents: np.ndarray, tokens: np.ndarray, searches: np.ndarray, columns: np.ndarray, beams: np.ndarray
) -> np.ndarray:
    """Tokens `[h, L]` of hypotheses up to their column, from choices `[n, L, M]`; behind it they mean nothing."""
    number, longest, width = tokens.shape
    rows = np.arange(-1, number * longest - 1)[:, None] * width
    before = (rows + parents.reshape(-1, width)).ravel()  # of every choice the place of the one before it
    own = (searches * longest + columns) * width + beams
    places = np.empty((longest, len(own)), np.intp)
    earliest, place = columns.min(initial=longest), own
    for column in range(longest - 1, -1, -1):
        place = before.take(place) if column < earliest else np.where(column < columns, before.take(place), own)
        places[column] = place
    return tokens.ravel().take(places).T
