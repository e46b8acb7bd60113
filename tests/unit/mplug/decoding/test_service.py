"""The decoder as a service: requests by tensors, answered from a thread of their own, withdrawn by tag."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from decode_fakes import END, START, VOCABULARY, FakeDecoder, script, wait_until

from mplug.config import GenerationConfig
from mplug.decoding.loop import DecodeLoop
from mplug.decoding.request import DecodeRequestParser
from mplug.decoding.service import WITHDRAWN, DecoderService
from mplug.errors import Cancelled, InvalidRequest, Unavailable

PARSER = DecodeRequestParser(
    hidden_size=4,
    vocab_size=VOCABULARY,
    max_positions=64,
    max_states=20,
    start_id=START,
    end_id=END,
    generation=GenerationConfig(num_beams=1, min_length=4, max_length=4),
)
SECONDS = 20


def states(name: int) -> np.ndarray:
    array = np.zeros((name % 5 + 1, 4), np.float32)
    array[0, 0] = name
    return array


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder()


@pytest.fixture
def service(decoder: FakeDecoder) -> Iterator[DecoderService]:
    opened = DecoderService(PARSER, DecodeLoop(decoder), None)
    yield opened
    decoder.let(1000)
    opened.close()


def submit(service: DecoderService, name: int, gone=None, **inputs) -> queue.Queue:
    answers: queue.Queue = queue.Queue()
    service.submit({"ENCODER_STATES": states(name), **inputs}, answers.put, answers.put, gone)
    return answers


def test_a_search_is_answered_away_from_the_decode_thread(service: DecoderService) -> None:
    threads: queue.Queue = queue.Queue()
    outputs: queue.Queue = queue.Queue()

    def answer(found) -> None:
        threads.put(threading.current_thread().name)
        outputs.put(found)

    service.submit({"ENCODER_STATES": states(3)}, answer, outputs.put)
    assert outputs.get(timeout=SECONDS)["TOKEN_IDS"].tolist() == [[START, *script(3, 4)]]
    assert "decode" not in threads.get(timeout=SECONDS)


def test_an_answer_that_cannot_be_sent_spoils_no_other(service: DecoderService) -> None:
    def broken(_) -> None:
        raise OSError("the client's end of the pipe is gone")

    service.submit({"ENCODER_STATES": states(1)}, broken, broken)
    assert submit(service, 2).get(timeout=SECONDS)["SCORE"].shape == (1,)


def test_a_withdrawal_reaches_its_request_alone(decoder: FakeDecoder, service: DecoderService) -> None:
    decoder.free = False
    stays, leaves = submit(service, 1, TAG=[b"a"]), submit(service, 2, TAG=[b"b"])
    withdrawn = submit(service, 0, CANCEL=[b"b"])
    assert withdrawn.get(timeout=SECONDS) is WITHDRAWN
    assert submit(service, 0, CANCEL=[b"unknown"]).get(timeout=SECONDS) is WITHDRAWN
    decoder.let(100)
    assert isinstance(leaves.get(timeout=SECONDS), Cancelled)
    assert stays.get(timeout=SECONDS)["TOKEN_IDS"].tolist() == [[START, *script(1, 4)]]


def test_answered_and_refused_requests_leave_nothing_behind(service: DecoderService) -> None:
    submit(service, 1, gone=lambda: False, TAG=[b"a"]).get(timeout=SECONDS)
    with pytest.raises(InvalidRequest, match="NUM_BEAMS"):
        submit(service, 1, gone=lambda: False, TAG=[b"b"], NUM_BEAMS=np.array([99], np.int32))
    with pytest.raises(InvalidRequest, match="without the ranking"):
        submit(service, 1, TAG=[b"c"], CANDIDATE_IDS=np.array([[START, 5, END]], np.int32))
    assert service._tags == {} and service._watch._checks == {}


def test_a_client_that_has_gone_ends_its_search(decoder: FakeDecoder, service: DecoderService) -> None:
    decoder.free = False
    asked = threading.Event()

    def gone() -> bool:
        asked.set()
        return True

    leaves = submit(service, 4, gone=gone)
    assert asked.wait(SECONDS)
    wait_until(lambda: all(flag.is_set() for flag in service._watch._checks))
    decoder.let(100)
    assert isinstance(leaves.get(timeout=SECONDS), Cancelled)


def test_a_check_that_fails_ends_neither_the_watch_nor_the_search(
    decoder: FakeDecoder, service: DecoderService
) -> None:
    decoder.free = False
    asked = threading.Semaphore(0)

    def broken() -> bool:
        asked.release()
        raise RuntimeError("the sender is broken")

    answers = submit(service, 1, gone=broken)
    for _ in range(2):
        assert asked.acquire(timeout=SECONDS)
    decoder.let(100)
    assert answers.get(timeout=SECONDS)["SCORE"].shape == (1,)


def test_closing_fails_what_waits(decoder: FakeDecoder) -> None:
    decoder.free = False
    service = DecoderService(PARSER, DecodeLoop(decoder), None)
    answers = [submit(service, name) for name in range(3)]
    closing = threading.Thread(target=service.close)
    closing.start()
    wait_until(lambda: service._loop._stopping)
    decoder.let(1)  # the step that was running
    closing.join(SECONDS)
    assert all(isinstance(answer.get(timeout=SECONDS), Unavailable) for answer in answers)
    with pytest.raises(Unavailable):
        submit(service, 1)
