"""Ranking given texts: which are scored, how they add up, and how it shares the decoder's thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mplug.decoding.candidate_scores import MAX_RANKED, ROWS_PER_PIECE, CandidateScores
from mplug.decoding.loop import DecodeLoop
from mplug.errors import Cancelled, Unavailable

STATES, MASK = np.zeros((3, 4), np.float32), np.ones(3, np.int32)


class Graph:
    """Log-probability of a token is −token / 100, whatever stands before it."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, inputs):
        self.rows.append(len(inputs["TOKENS"]))
        assert inputs["ENCODER_STATES"].shape == (1, 3, 4)
        assert inputs["TARGETS"].shape[:2] == inputs["TOKENS"].shape
        return {"LOG_PROBABILITIES": -inputs["TARGETS"].astype(np.float32) / 100}


def job(candidates, graph=None, **options) -> tuple[CandidateScores, list, list]:
    done, failed = [], []
    ids = np.array(candidates, np.int32)
    return CandidateScores(graph or Graph(), STATES, MASK, ids, done.append, failed.append, **options), done, failed


def finish(one: CandidateScores) -> None:
    while not one.advance():
        pass


def test_padding_counts_nothing() -> None:
    one, done, _ = job([[101, 5, 102, 0], [101, 7, 8, 102]])
    finish(one)
    np.testing.assert_allclose(done[0], [-1.07, -1.17], rtol=1e-6)


def test_the_first_token_may_count_twice() -> None:
    one, done, _ = job([[101, 5, 102, 0], [101, 7, 8, 102]], first_token_weight=2)
    finish(one)
    np.testing.assert_allclose(done[0], [-1.12, -1.24], rtol=1e-6)


def test_of_many_those_with_the_likeliest_first_token_are_scored_in_pieces() -> None:
    graph = Graph()
    first = np.random.default_rng(0).permutation(300) + 1
    one, done, _ = job([[101, token, 102] for token in first], graph)
    finish(one)
    kept = np.isfinite(done[0])
    assert kept.sum() == MAX_RANKED
    assert first[kept].max() == MAX_RANKED  # low tokens are likely ones here
    assert max(graph.rows) == ROWS_PER_PIECE


def wait_for(answers: list) -> None:
    event = threading.Event()
    for _ in range(500):
        if answers:
            return
        event.wait(0.01)
    raise AssertionError("no answer")


@pytest.fixture
def loop():
    loop = DecodeLoop(decoder=None)  # no search runs here
    yield loop
    loop.stop()


def test_jobs_take_turns_on_the_loops_thread(loop: DecodeLoop) -> None:
    threads = set()

    class Threads(Graph):
        def __call__(self, inputs):
            threads.add(threading.current_thread().name)
            return super().__call__(inputs)

    several = [job([[101, 5, 102]] * 40, Threads()) for _ in range(3)]
    for one, _, _ in several:
        loop.submit_job(one)
    for _, done, failed in several:
        wait_for(done)
        assert not failed
    assert threads == {"decode"}


def test_a_job_that_fails_or_is_cancelled_is_told_and_the_next_one_runs(loop: DecodeLoop) -> None:
    def broken(inputs):
        raise RuntimeError("out of order")

    bad, _, failed = job([[101, 5, 102]], broken)
    gone, _, withdrawn = job([[101, 5, 102]], cancelled=lambda: True)
    good, done, _ = job([[101, 5, 102]])
    for one in (bad, gone, good):
        loop.submit_job(one)
    wait_for(done)
    assert "out of order" in str(failed[0])
    assert isinstance(withdrawn[0], Cancelled)


def test_a_stopped_loop_takes_no_job() -> None:
    loop = DecodeLoop(decoder=None)
    loop.stop()
    with pytest.raises(Unavailable):
        loop.submit_job(job([[101, 5, 102]])[0])
