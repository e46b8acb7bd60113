"""The decode loop on a decoder that computes nothing: who is in which slot when, and who is answered what."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from decode_fakes import BYTES_PER_PLACE, END, FakeDecoder, ask, script, wait_until

from mplug.decoding.loop import ADMISSIONS_PER_STEP, DecodeLoop
from mplug.errors import Cancelled, InvalidRequest, Unavailable


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[DecodeLoop, FakeDecoder]]]:
    """`start(free=False, max_slots=2)`: a loop and its decoder, stopped when the test is over."""
    loops: list[tuple[DecodeLoop, FakeDecoder]] = []

    def make(free: bool = True, chunk: int = 1, **options: object) -> tuple[DecodeLoop, FakeDecoder]:
        decoder = FakeDecoder(free=free, chunk=chunk)
        loops.append((DecodeLoop(decoder, **options), decoder))
        return loops[-1]

    yield make
    for loop, decoder in loops:
        decoder.let(1000)
        loop.stop()


def test_one_request(start) -> None:
    loop, decoder = start()
    assert ask(loop, 3, 5).tokens() == script(3, 5)
    assert decoder.batches == [[3]] * 5
    counts = loop.statistics
    assert (counts.steps, counts.sequence_steps, counts.tokens) == (5, 5, 5)
    wait_until(lambda: counts.finished == 1)
    assert (counts.admitted, counts.cancelled, counts.refused, counts.failed) == (1, 0, 0, 0)


def test_as_many_hypotheses_as_beams_best_first(start) -> None:
    loop, _ = start()
    hypotheses = ask(loop, 3, 4, beams=6).wait()
    assert len(hypotheses) == 6
    assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
    assert hypotheses[0].token_ids == script(3, 4)


def test_a_prompt_is_fed_before_anything_is_chosen(start) -> None:
    loop, decoder = start()
    prompted = ask(loop, 4, 3, prompt=(50, 60))
    assert prompted.tokens() == script(4, 3, behind=3)
    assert len(decoder.batches) == 5
    assert loop.statistics.tokens == 3


def test_the_last_slot_moves_into_the_hole(start) -> None:
    loop, decoder = start(free=False)
    outcomes = [ask(loop, name, length) for name, length in ((1, 5), (2, 2), (3, 4))]
    decoder.let(6)
    assert [outcome.tokens() for outcome in outcomes] == [script(1, 5), script(2, 2), script(3, 4)]
    assert decoder.moves[0] == (2, 1)
    assert all(len(set(batch)) == len(batch) and -1 not in batch for batch in decoder.batches)


def test_several_leave_after_one_step(start) -> None:
    """Holes at the front, in the middle and at the end, in every combination."""
    for leaving in range(1, 16):
        loop, decoder = start(free=False)
        lengths = [2 if leaving >> name & 1 else 4 for name in range(4)]
        first = ask(loop, 9, 1)  # keeps the loop at its gate until the others are queued
        wait_until(lambda decoder=decoder: decoder.admitted == [9])
        outcomes = [ask(loop, name, length) for name, length in enumerate(lengths)]
        decoder.let(10)
        assert first.tokens() == script(9, 1)
        assert [outcome.tokens() for outcome in outcomes] == [script(n, length) for n, length in enumerate(lengths)]
        assert decoder.batches[1] == [0, 1, 2, 3]
        stayed = [name for name in range(4) if lengths[name] == 4]
        assert [sorted(batch) for batch in decoder.batches[3:4]] == [stayed] * bool(stayed)


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("slots", [1, 3, 32])
def test_a_crowd_gets_what_each_would_get_alone(start, slots: int, chunk: int) -> None:
    loop, decoder = start(max_slots=slots, max_queue=1000, chunk=chunk)
    dice = random.Random(slots)
    asked = [(name, dice.randint(1, 30), dice.choice([1, 2, 5]), dice.randint(0, 3)) for name in range(120)]
    outcomes = [ask(loop, name, length, beams=beams, prompt=(7,) * prompt) for name, length, beams, prompt in asked]
    for outcome, (name, length, _, prompt) in zip(outcomes, asked, strict=True):
        assert outcome.tokens() == script(name, length, behind=1 + prompt)
    assert max(map(len, decoder.batches)) == slots
    assert decoder.admitted == list(range(120))  # first come, first served
    wait_until(lambda: loop.statistics.finished == 120)
    assert loop.statistics.sequence_steps == sum(length + prompt for _, length, _, prompt in asked)


@pytest.mark.parametrize("end_at", range(1, 9))
@pytest.mark.parametrize("beams", [1, 3])
def test_an_end_token_within_a_chunk_ends_one_search_there(start, end_at: int, beams: int) -> None:
    """What the idle steps behind it leave in the log belongs to no answer, and the others go on."""
    loop, decoder = start(max_slots=3, chunk=4)
    decoder.ends = {1: end_at}
    outcomes = [ask(loop, name, 12, beams=beams) for name in range(3)]
    assert outcomes[1].tokens() == (*script(1, end_at - 1), END)
    assert [outcomes[name].tokens() for name in (0, 2)] == [script(0, 12), script(2, 12)]
    assert len(outcomes[1].wait()) == beams
    wait_until(lambda: loop.statistics.finished == 3)
    assert loop.statistics.sequence_steps == loop.statistics.tokens == 12 + end_at + 12
    assert decoder.idle < 2 * decoder.chunk


def test_who_comes_joins_at_the_next_step(start) -> None:
    loop, decoder = start(free=False)
    long = ask(loop, 1, 50)
    decoder.let(3)
    wait_until(lambda: len(decoder.batches) == 3)
    short = ask(loop, 2, 2)
    decoder.let(4)
    assert short.tokens() == script(2, 2)
    assert not long.answered
    assert decoder.batches[4:6] == [[1, 2], [1, 2]]  # the fourth step was under way already
    decoder.let(50)
    assert long.tokens() == script(1, 50)


def test_those_who_decode_wait_for_few_admissions(start) -> None:
    """Admitting computes: a rush must not hold up the active requests by more than a few at a time."""
    loop, decoder = start(free=False)
    ask(loop, 100, 40)
    wait_until(lambda: decoder.admitted == [100])
    for name in range(12):
        ask(loop, name, 40)
    decoder.let(4)
    wait_until(lambda: len(decoder.batches) == 4)
    assert [len(batch) for batch in decoder.batches] == [1 + ADMISSIONS_PER_STEP * step for step in range(4)]


def test_nobody_starves(start) -> None:
    """Short requests keep coming to a full house; a long one among them gets its slot in its turn, and its steps."""
    loop, decoder = start(max_slots=2, max_queue=1000)
    outcomes = [ask(loop, name, 3) for name in range(100)]
    long = ask(loop, 500, 40)
    outcomes += [ask(loop, name, 3) for name in range(100, 200)]
    assert long.tokens() == script(500, 40)
    for name, outcome in enumerate(outcomes):
        assert outcome.tokens() == script(name, 3)
    assert decoder.admitted.index(500) == 100
    turns = [index for index, batch in enumerate(decoder.batches) if 500 in batch]
    assert turns == list(range(turns[0], turns[0] + 40))


# ------------------------------------------------------------------------------------------------ the queue


def test_a_full_queue_refuses(start) -> None:
    loop, decoder = start(free=False, max_slots=1, max_queue=2)
    running = ask(loop, 1, 3)
    wait_until(lambda: decoder.admitted == [1])
    queued = [ask(loop, name, 2) for name in (2, 3)]
    assert loop.waiting == 2
    with pytest.raises(Unavailable, match="queue of 2 requests is full; try again later"):
        ask(loop, 4, 2)
    assert loop.statistics.refused == 1
    decoder.let(100)
    assert [outcome.tokens() for outcome in (running, *queued)] == [script(1, 3), script(2, 2), script(3, 2)]
    assert ask(loop, 5, 2).tokens() == script(5, 2)
    assert 4 not in decoder.admitted


def test_stop_answers_everyone(start) -> None:
    loop, decoder = start(free=False, max_slots=2)
    outcomes = [ask(loop, name, 30) for name in range(5)]
    wait_until(lambda: len(decoder.admitted) == 2)
    decoder.let(1)
    decoder.free = True
    loop.stop()
    for outcome in outcomes:
        answer = outcome.wait()
        assert isinstance(answer, Unavailable) or answer[0].token_ids
    assert isinstance(outcomes[-1].wait(), Unavailable)
    with pytest.raises(Unavailable, match="shutting down"):
        ask(loop, 9, 1)
    loop.stop()


def test_an_idle_loop_stops(start) -> None:
    loop, decoder = start()
    loop.stop()
    assert decoder.batches == []


# --------------------------------------------------------------------------------------------- cancellation


def test_a_cancelled_request_leaves_within_one_step(start) -> None:
    loop, decoder = start(free=False)
    outcomes = [ask(loop, name, 20) for name in range(3)]
    decoder.let(5)
    wait_until(lambda: len(decoder.batches) == 5)
    outcomes[0].gone = True
    decoder.let(1)  # the step that was under way
    assert isinstance(outcomes[0].wait(), Cancelled)
    assert not outcomes[1].answered
    decoder.let(40)
    assert [outcome.tokens() for outcome in outcomes[1:]] == [script(1, 20), script(2, 20)]
    assert all(0 not in batch for batch in decoder.batches[6:])
    assert loop.statistics.cancelled == 1


def test_who_gives_up_waiting_is_never_admitted(start) -> None:
    loop, decoder = start(free=False, max_slots=1)
    running, waiting, behind = (ask(loop, name, 2) for name in (1, 2, 3))
    wait_until(lambda: decoder.admitted == [1])
    waiting.gone = True
    decoder.let(10)
    assert isinstance(waiting.wait(), Cancelled)
    assert (running.tokens(), behind.tokens()) == (script(1, 2), script(3, 2))
    assert decoder.admitted == [1, 3]


def test_all_cancelled_at_once(start) -> None:
    loop, decoder = start(free=False)
    outcomes = [ask(loop, name, 20) for name in range(8)]
    decoder.let(3)
    wait_until(lambda: len(decoder.batches) == 3)
    for outcome in outcomes:
        outcome.gone = True
    decoder.let(1)
    assert all(isinstance(outcome.wait(), Cancelled) for outcome in outcomes)
    decoder.let(10)
    assert ask(loop, 50, 2).tokens() == script(50, 2)


# ----------------------------------------------------------------------------------------- when things break


def test_a_step_that_breaks_answers_all_and_the_loop_goes_on(start) -> None:
    loop, decoder = start(free=False)
    outcomes = [ask(loop, name, 20) for name in range(3)]
    decoder.let(4)
    wait_until(lambda: len(decoder.batches) == 4)
    error = RuntimeError("the decoder broke")
    decoder.fail_step = error
    decoder.let(1)
    assert [outcome.wait() for outcome in outcomes] == [error] * 3
    assert loop.statistics.failed == 3
    decoder.let(100)
    assert ask(loop, 7, 6).tokens() == script(7, 6)


def test_an_admission_that_breaks_concerns_one(start) -> None:
    loop, decoder = start(free=False)
    decoder.fail_admit[2] = MemoryError("no room")
    outcomes = [ask(loop, name, 4) for name in (1, 2, 3)]
    decoder.let(100)
    assert outcomes[1].wait() is decoder.fail_admit[2]
    assert (outcomes[0].tokens(), outcomes[2].tokens()) == (script(1, 4), script(3, 4))


def test_a_reservation_that_breaks_concerns_one(start) -> None:
    """Memory that is not there for a large request costs the active requests nothing."""
    loop, decoder = start(free=False)
    first = ask(loop, 1, 6)
    wait_until(lambda: decoder.admitted == [1])
    error = MemoryError("no room")
    decoder.fail_reserve = error
    large = ask(loop, 2, 300, beams=8)
    decoder.let(100)
    assert large.wait() is error
    assert first.tokens() == script(1, 6)
    assert ask(loop, 3, 4).tokens() == script(3, 4)


def test_answers_that_cannot_be_delivered_do_not_end_the_loop(start) -> None:
    loop, _ = start()

    def broken(_: object) -> None:
        raise RuntimeError("the client's end broke")

    outcome = ask(loop, 1, 30)
    outcome.request.done = broken
    assert ask(loop, 2, 50).tokens(seconds=5) == script(2, 50)
    assert ask(loop, 3, 2).tokens() == script(3, 2)


# ------------------------------------------------------------------------------------------- room for caches


def test_room_follows_the_active_requests(start) -> None:
    """One giant request must not make every later step as dear as its own."""
    loop, decoder = start()
    for name, length, beams in ((1, 8, 2), (2, 400, 8), (3, 8, 2)):
        assert ask(loop, name, length, beams=beams).tokens() == script(name, length)
    small, giant, after = (next(room for room in decoder.rooms[index:]) for index in (0, 1, len(decoder.rooms) - 1))
    assert giant.positions >= 400 and giant.columns == 8
    assert after == small


def test_a_request_beyond_the_memory_is_refused_and_one_within_it_waits(start) -> None:
    places = 8 * 2 + 32  # of one small request: positions × columns, and states
    loop, decoder = start(free=False, max_cache_bytes=4 * places * BYTES_PER_PLACE)
    small = [ask(loop, name, 8, beams=2) for name in range(2)]
    wait_until(lambda: len(decoder.admitted) == 2)
    impossible = ask(loop, 10, 400, beams=2)
    large = ask(loop, 11, 40, beams=3)  # fits alone, not beside the others
    behind = ask(loop, 12, 8, beams=2)
    decoder.let(200)
    assert [outcome.tokens() for outcome in small] == [script(0, 8), script(1, 8)]
    refused = impossible.wait()
    assert isinstance(refused, InvalidRequest) and "KV cache" in str(refused)
    assert large.tokens() == script(11, 40)
    assert behind.tokens() == script(12, 8)
    assert decoder.admitted == [0, 1, 11, 12]
    assert all(decoder.cache_bytes(room) <= 4 * places * BYTES_PER_PLACE for room in decoder.rooms)


def test_the_observer_sees_every_round(start) -> None:
    seen: list[tuple[int, int]] = []
    loop, _ = start(observer=lambda loop: seen.append((loop.batch, loop.statistics.steps)))
    ask(loop, 1, 5).tokens()
    wait_until(lambda: seen[-1:] == [(0, 5)])
    assert [steps for _, steps in seen] == [1, 2, 3, 4, 5]
