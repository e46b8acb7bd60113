"""Captions of a real server against the published implementation: token for token, alone, together, after a crash."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wire import PROTOCOLS, Wire, connect, hypotheses, metric

from mplug.server.command import TritonServer

GOLDEN = Path(__file__).parents[1] / "parity" / "data"
IMAGES = [path.read_bytes() for path in sorted((GOLDEN / "caption").glob("image*.png"))]
EXPECTED = json.loads((GOLDEN / "caption" / "expected.json").read_text())
SEARCHES = EXPECTED["beam_search"]
SCORE_TOLERANCE = 1e-3
CLIENTS = 32
TURNS = 3  # requests of each client


def options_of(search: dict[str, Any]) -> dict[str, Any]:
    """A golden search as the inputs of a request for its whole n-best list."""
    beams = search["num_beams"]
    return {
        "NUM_BEAMS": beams,
        "NUM_RETURN": beams,
        "MIN_LENGTH": search["min_length"],
        "MAX_LENGTH": search["max_length"],
        "LENGTH_PENALTY": float(search["length_penalty_alpha"]),
    }


def assert_golden(found: list[tuple[list[int], float]], reference: list[dict[str, Any]]) -> None:
    assert [ids for ids, _ in found] == [entry["ids"] for entry in reference]
    np.testing.assert_allclose(
        [score for _, score in found], [entry["score"] for entry in reference], rtol=0, atol=SCORE_TOLERANCE
    )


def assert_all_golden(wire: Wire, search: dict[str, Any]) -> None:
    for image, reference in zip(IMAGES, search["nbest"], strict=True):
        assert_golden(hypotheses(wire.ask(IMAGE=image, **options_of(search))), reference)


@pytest.fixture(params=PROTOCOLS)
def wire(request: pytest.FixtureRequest, caption_server: TritonServer) -> Iterator[Wire]:
    with connect(caption_server, request.param) as wire:
        yield wire


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: f"{search['num_beams']}beams")
def test_every_golden_list(wire: Wire, search: dict[str, Any]) -> None:
    assert_all_golden(wire, search)


def test_defaults_are_those_of_the_checkpoint(wire: Wire) -> None:
    """The golden checkpoint's YAML says 5 beams and 4 to 14 tokens, as the first golden search does."""
    for image, reference in zip(IMAGES, SEARCHES[0]["nbest"], strict=True):
        answer = wire.ask(IMAGE=image)
        assert_golden(hypotheses(answer), reference[:1])
        words = (GOLDEN / "caption" / "vocab.txt").read_text().splitlines()
        ids = [index for index in reference[0]["ids"] if index not in (101, 102)]
        text = " ".join(words[index] for index in ids).replace(" ##", "")
        assert answer["CAPTION"].tolist() == [text.encode()]


def test_shapes_and_types_of_the_answer(wire: Wire) -> None:
    answer = wire.ask(IMAGE=IMAGES[0], NUM_BEAMS=8, NUM_RETURN=6)
    assert {name: (array.dtype, array.ndim) for name, array in answer.items()} == {
        "CAPTION": (np.dtype(object), 1),
        "SCORE": (np.dtype(np.float32), 1),
        "TOKEN_IDS": (np.dtype(np.int32), 2),
    }
    assert {len(array) for array in answer.values()} == {6}
    assert (answer["TOKEN_IDS"][:, 0] == 101).all()
    assert (np.diff(answer["SCORE"]) <= 0).all()


def test_a_prompt_is_decoded_first(wire: Wire) -> None:
    """Published captioners go on from the prompt; the longest length counts what follows it."""
    prompt = (GOLDEN / "caption" / "vocab.txt").read_text().splitlines()[654]
    answer = wire.ask(IMAGE=IMAGES[0], PROMPT=f"  {prompt.upper()} ", MIN_LENGTH=3, MAX_LENGTH=3, NUM_RETURN=2)
    assert (answer["TOKEN_IDS"][:, :2] == [101, 654]).all()
    assert answer["TOKEN_IDS"].shape == (2, 2 + 3)
    assert all(caption.decode().startswith(prompt) for caption in answer["CAPTION"])


def test_the_torch_target_answers_the_same(built: Callable[..., Path]) -> None:
    with TritonServer(built("caption", "--target", "torch")) as server, connect(server, "grpc") as wire:
        for search in SEARCHES:
            assert_all_golden(wire, search)


def test_another_image_size(built: Callable[..., Path]) -> None:
    """Positions are resampled, and images are resized to the size that was built."""
    expected = json.loads((GOLDEN / "resize" / "expected.json").read_text())
    repository = built("caption", "--image-size", str(expected["image_res"]))
    with TritonServer(repository) as server, connect(server, "grpc") as wire:
        for index, reference in enumerate(expected["nbest"]):
            image = (GOLDEN / "resize" / f"image{index}.png").read_bytes()
            assert_golden(hypotheses(wire.ask(IMAGE=image, NUM_RETURN=len(reference))), reference)


def mixed_requests() -> list[dict[str, Any]]:
    """Beams from 1 to 16, results from 1 to 40 tokens, one request per client."""
    random = np.random.default_rng(0)
    requests = []
    for index in range(CLIENTS):
        beams = [1, 3, 5, 8, 16][index % 5]
        shortest, longest = sorted(random.integers(1, 41, 2).tolist())
        requests.append(
            {
                "IMAGE": IMAGES[index % len(IMAGES)],
                "NUM_BEAMS": beams,
                "NUM_RETURN": beams,
                "MIN_LENGTH": shortest,
                "MAX_LENGTH": longest,
            }
        )
    return requests


def test_many_clients_share_the_steps_and_get_the_same_tokens(caption_server: TritonServer) -> None:
    requests = mixed_requests()
    begun = decode_counts(caption_server)
    with connect(caption_server, "grpc") as wire:
        alone = [hypotheses(wire.ask(**request)) for request in requests]
    counted_alone = decode_counts(caption_server, since=begun, requests=len(requests))
    start = threading.Barrier(CLIENTS)

    def client(index: int) -> list[list[tuple[list[int], float]]]:
        with connect(caption_server, PROTOCOLS[index % 2]) as wire:
            start.wait(30)
            # Each client begins elsewhere in the list, so that all sorts of neighbours meet.
            return [hypotheses(wire.ask(**requests[(index + turn) % CLIENTS])) for turn in range(TURNS)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(client, range(CLIENTS)))
    for index, answers in enumerate(together):
        for turn, answer in enumerate(answers):
            reference = alone[(index + turn) % CLIENTS]
            assert [ids for ids, _ in answer] == [ids for ids, _ in reference]
            np.testing.assert_allclose(
                [score for _, score in answer], [score for _, score in reference], rtol=0, atol=SCORE_TOLERANCE
            )
    counted = decode_counts(caption_server, since=counted_alone, requests=TURNS * CLIENTS)
    one_by_one = counted_alone - begun
    at_once = counted - counted_alone
    assert one_by_one[SEQUENCE_STEPS] == one_by_one[STEPS]
    # The same searches, each TURNS times: as many steps of a sequence, in fewer steps of the decoder. How many fewer
    # depends on how fast the clients are beside the decoder: the benchmarks measure it.
    assert at_once[SEQUENCE_STEPS] == TURNS * one_by_one[SEQUENCE_STEPS]
    assert at_once[SEQUENCE_STEPS] > at_once[STEPS]


STEPS, SEQUENCE_STEPS, FINISHED = range(3)


def decode_counts(server: TritonServer, since: np.ndarray | None = None, requests: int = 0) -> np.ndarray:
    """The decode loop's counters, once they tell of so many more requests; they follow an answer by a moment."""
    names = ("mplug_decode_steps_total", "mplug_decode_sequence_steps_total", "mplug_decode_finished_total")
    deadline = time.monotonic() + 20
    while True:
        counts = np.array([metric(server, name) for name in names])
        if since is None or counts[FINISHED] - since[FINISHED] == requests:
            return counts
        assert time.monotonic() < deadline, f"{counts - since} of {requests} requests"
        time.sleep(0.05)


def test_a_killed_server_answers_the_same_after_its_restart(built: Callable[..., Path]) -> None:
    repository = built("caption")
    answers = []
    for crashes in (True, False):
        with TritonServer(repository) as server, connect(server, "grpc") as wire:
            answers.append(hypotheses(wire.ask(IMAGE=IMAGES[3], **options_of(SEARCHES[3]))))
            if crashes:
                os.kill(server.pid, signal.SIGKILL)
                deadline = time.monotonic() + 20
                while server.exit_code is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                assert server.exit_code == -signal.SIGKILL
    assert answers[0] == answers[1]
    assert_golden(answers[0], SEARCHES[3]["nbest"][3])
