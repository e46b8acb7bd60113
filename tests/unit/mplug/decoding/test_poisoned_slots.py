"""A request must find nothing of the last one in its slot: a masked NaN is still NaN, for 0 × NaN is."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from decode_fakes import FakeDecoder, ask

from mplug.checkpoint import load_checkpoint
from mplug.decoding.beam_search import SearchOptions
from mplug.decoding.candidate_scores import CandidateScores
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.errors import StageError
from mplug.runtime.torch import eager_decoder

GOLDEN = Path(__file__).parents[3] / "parity" / "data" / "caption"
START, END = 101, 102


def search(loop: DecodeLoop, states: np.ndarray, length: int = 6):
    outcome: list = []
    done = threading.Event()

    def take(answer) -> None:
        outcome.append(answer)
        done.set()

    loop.submit(
        DecodeRequest(
            encoder_states=states,
            encoder_mask=np.ones(len(states), np.int32),
            prefix=[START],
            options=SearchOptions(2, length, length, 1, 0.6, END),
            token_range=(0, 900),
            done=take,
            failed=take,
        )
    )
    assert done.wait(60)
    return outcome[0]


@pytest.mark.parametrize("poison", [1e20, 3e38])
def test_huge_states_spoil_neither_their_slot_nor_their_neighbours(poison: float) -> None:
    """Straight into the loop, past the door that refuses such states."""
    network, _ = load_checkpoint(GOLDEN)
    width = network.config.text.hidden_size
    states = np.random.default_rng(0).standard_normal((5, width)).astype(np.float32)
    loop = DecodeLoop(eager_decoder(network, END))
    try:
        expected = search(loop, states)
        # Longer, so that its keys lie where the next request has padding.
        assert isinstance(search(loop, np.full((30, width), poison, np.float32), length=12), StageError)
        found = search(loop, states)
    finally:
        loop.stop()
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    # The caches are larger now, so that sums over them are taken in another order; a score of this size has six digits.
    np.testing.assert_allclose([one.score for one in found], [one.score for one in expected], rtol=1e-5)


def test_a_slot_is_empty_when_it_is_admitted_to() -> None:
    network, _ = load_checkpoint(GOLDEN)
    width = network.config.text.hidden_size
    decoder = eager_decoder(network, END)
    loop = DecodeLoop(decoder)
    try:
        search(loop, np.ones((30, width), np.float32), length=12)
    finally:
        loop.stop()
    decoder.admit(0, np.ones((3, width), np.float32))
    assert not decoder._past[:, 0].any()
    assert decoder._cross[:, 0, :, :3].any() and not decoder._cross[:, 0, :, 3:].any()


def test_a_score_that_is_no_number_fails_its_request_alone() -> None:
    class Spoilt(FakeDecoder):
        def step(self, *inputs):
            chosen = super().step(*inputs)
            chosen[-1].scores[[name == 7 for name in self.batches[-1]]] = np.nan
            return chosen

    decoder = Spoilt(free=False)
    loop = DecodeLoop(decoder)
    try:
        outcomes = {name: ask(loop, name, 5, beams=2) for name in (3, 7, 4)}
        decoder.let(100)
        with pytest.raises(StageError, match="NaN"):
            outcomes[7].tokens()
        for name in (3, 4):
            assert len(outcomes[name].tokens()) == 5
        assert loop.statistics.failed == 1 and loop.statistics.finished == 2
    finally:
        decoder.let(100)
        loop.stop()


def test_a_ranking_that_is_no_number_is_an_error() -> None:
    def graph(inputs):
        return {"LOG_PROBABILITIES": np.full(inputs["TARGETS"].shape, np.nan, np.float32)}

    ranking = CandidateScores(
        graph, np.ones((2, 4)), np.ones(2, np.int32), np.array([[START, 5, END]], np.int32), print, print
    )
    with pytest.raises(StageError, match="NaN"):
        while not ranking.advance():
            pass
