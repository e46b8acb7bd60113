"""The compiled search beside the plain one, over random scores, with ties and near-ties, many requests at once."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from mplug.contract import MAX_BEAMS, SEARCH_STATE
from mplug.decoding.beam_search import BeamSearch, Hypothesis, SearchOptions
from mplug.decoding.search_log import EndedSearch, SearchLog
from mplug.network.beam_step import GROUP, LARGE_VOCABULARY, SearchState, beam_step, likeliest
from mplug.runtime.interface import StepChoices
from mplug.runtime.room import Room
from mplug.runtime.search_state import empty_state, new_search, write_row

VOCABULARY, END, PROMPT = 60, 7, 3
RANGE = (5, 40)
ROOM = Room(8, 24, MAX_BEAMS, 1)


class RandomDecoder:
    """Logits that depend on a beam's whole text alone, as a decoder's do."""

    def __init__(self, seed: int, levels: int) -> None:
        """With few `levels` many logits are equal, to the last bit."""
        self._seed, self._levels = seed, levels
        self.logits = cache(self._logits)

    def _logits(self, text: tuple[int, ...]) -> np.ndarray:
        """Return `[V]`; as many allowed tokens as a beam proposes lie above all others: no tie leaves them open."""
        random = np.random.default_rng([self._seed, *text])
        logits = random.random(VOCABULARY).astype(np.float32)
        likely = random.permutation(np.arange(*RANGE))[: MAX_BEAMS + 1]
        logits[likely] = 2 + random.integers(0, self._levels, len(likely)) * (6.0 / self._levels)
        return logits


def plain(decoder: RandomDecoder, options: SearchOptions, token_range: tuple[int, int]) -> list[Hypothesis]:
    """One request by the reference; equal candidates stand in the order of their ids."""
    search, texts = BeamSearch(options), [(PROMPT,)] * options.num_beams
    while True:
        logits = torch.from_numpy(np.stack([decoder.logits(text) for text in texts]))
        ids = torch.arange(VOCABULARY)
        logits = logits + torch.where((ids < token_range[0]) | (ids >= token_range[1]), -10_000.0, 0.0)
        # As the step writes it out, so that what is equal here is equal there.
        largest = logits.amax(-1, keepdim=True)
        scores = logits - largest - torch.log(torch.exp(logits - largest).sum(-1, keepdim=True))
        scores[:, END] += -1e20 if search.end_blocked else 0.0
        best = np.argsort(-scores.numpy(), axis=-1, kind="stable")
        # The reference takes equal totals in the order given: by beam, then here by id among a beam's equals.
        following = search.advance(best, np.take_along_axis(scores.numpy(), best, -1))
        if following is None:
            return search.best()
        texts = [(*texts[p], t) for p, t in zip(following.parents.tolist(), following.tokens.tolist(), strict=True)]


def compiled(decoder: RandomDecoder, requests: list[tuple[SearchOptions, tuple[int, int], int]]) -> list:
    """All requests side by side in one state, each with a prompt of its own length, put together from the log."""
    state = empty_state(ROOM)
    texts = [[()] * MAX_BEAMS for _ in requests]
    for slot, (options, token_range, prompt) in enumerate(requests):
        rows = new_search(
            prefix=[PROMPT] * prompt,
            encoder_mask=np.ones(1, np.int32),
            beams=options.num_beams,
            min_length=options.min_length,
            max_length=options.max_length,
            token_range=token_range,
        )
        for name, value in rows.items():
            write_row(name, state[name][slot : slot + 1], value)
    tensors = {name: torch.from_numpy(array[: len(requests)]) for name, array in state.items()}
    log, last = SearchLog(), {}
    log.reserve(ROOM, 1)
    while len(last) < len(requests):
        texts = [
            [(*texts[slot][beam], int(tensors["TOKENS"][slot, beam])) for beam in range(MAX_BEAMS)]
            for slot in range(len(requests))
        ]
        logits = np.zeros((len(requests), MAX_BEAMS, VOCABULARY), np.float32)
        for slot, (options, _, prompt) in enumerate(requests):
            for beam in range(options.num_beams):
                logits[slot, beam] = decoder.logits((PROMPT, *texts[slot][beam][prompt:]))
        before = SearchState(*(tensors[tensor.name] for tensor in SEARCH_STATE))
        following, parents = beam_step(
            torch.from_numpy(logits), before, tensors["PREFIX"], tensors["OPTIONS"], end_id=END
        )
        for slot in range(len(requests)):
            if slot not in last and following.over[slot]:
                last[slot] = log.steps
        log.append(
            StepChoices(parents.numpy(), following.tokens.numpy(), following.scores.numpy(), following.over.numpy())
        )
        assert torch.equal(following.positions, before.positions + (following.over == 0))
        texts = [[texts[slot][p] for p in parents[slot].tolist()] for slot in range(len(requests))]
        tensors |= dict(zip((tensor.name for tensor in SEARCH_STATE), following, strict=True))
    ended = [EndedSearch(slot, prompt - 1, last[slot], options) for slot, (options, _, prompt) in enumerate(requests)]
    return log.best(ended)


@pytest.mark.parametrize("levels", [3, 40, 10_000])
@pytest.mark.parametrize("seed", range(2))
def test_mixed_requests_find_what_each_finds_alone(seed: int, levels: int) -> None:
    """1 to 16 beams, other lengths, prompts, penalties and ranges, in one batch: the same ids and scores."""
    dice, decoder = np.random.default_rng(seed), RandomDecoder(seed, levels)
    requests = []
    for beams in (1, 2, 3, 5, 16, int(dice.integers(1, 17))):
        least = int(dice.integers(0, 5))
        options = SearchOptions(
            beams,
            least,
            least + int(dice.integers(1, 14)),
            int(dice.integers(1, beams + 1)),
            float(dice.choice([0.0, 0.6, -1.0])),
            END,
        )
        token_range = (0, VOCABULARY) if dice.integers(2) else RANGE
        requests.append((options, token_range, int(dice.integers(1, 4))))
    found = compiled(decoder, requests)
    for answer, (options, token_range, _) in zip(found, requests, strict=True):
        expected = plain(decoder, options, token_range)
        assert [one.token_ids for one in answer] == [one.token_ids for one in expected], options
        np.testing.assert_allclose([one.score for one in answer], [one.score for one in expected], rtol=1e-5)


def test_nan_in_one_slot_is_seen_there_alone() -> None:
    """However little of it there is."""
    state = {name: torch.from_numpy(array[:2].copy()) for name, array in empty_state(ROOM).items()}
    state["OPTIONS"][:] = torch.tensor([1, 2, 0, 10, 0, VOCABULARY])
    state["SCORES"][:, 0] = 0.0
    logits = torch.randn(2, MAX_BEAMS, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits[1, 1, 3] = torch.nan
    before = SearchState(*(state[tensor.name] for tensor in SEARCH_STATE))
    following, parents = beam_step(logits, before, state["PREFIX"], state["OPTIONS"], END)
    assert following.scores[0, :2].isfinite().all()
    assert following.scores[1].isnan().all()
    assert parents.min() >= 0 and parents.max() < MAX_BEAMS


def test_an_empty_slot_stays_where_it_is() -> None:
    """Slots that hold no request are stepped too, where steps are rounded up."""
    state = {name: torch.from_numpy(array[:1].copy()) for name, array in empty_state(ROOM).items()}
    before = SearchState(*(state[tensor.name] for tensor in SEARCH_STATE))
    for _ in range(ROOM.positions + 2):
        before, _ = beam_step(torch.zeros(1, MAX_BEAMS, VOCABULARY), before, state["PREFIX"], state["OPTIONS"], END)
    assert before.positions.tolist() == [0] and before.over.tolist() == [1]


@pytest.mark.parametrize("vocabulary", [LARGE_VOCABULARY - 1, LARGE_VOCABULARY, LARGE_VOCABULARY + 5, 30_522])
@pytest.mark.parametrize("number", [1, MAX_BEAMS + 1])
def test_the_likeliest_of_a_large_vocabulary_are_those_of_all(vocabulary: int, number: int) -> None:
    """Wherever they stand: scattered, all in one group, at the very end, far below zero."""
    logits = torch.randn(3, 2, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    logits[0, 1, 5 * GROUP : 6 * GROUP] += 20.0
    logits[1, 0, -number:] += 20.0
    logits[2] -= 10_000.0
    values, ids = likeliest(logits, number)
    expected = torch.topk(logits, number, dim=-1)
    assert torch.equal(values, expected.values)
    assert torch.equal(logits.gather(2, ids.long()), values)
    assert all(len(set(row)) == number for row in ids.flatten(0, 1).tolist())
