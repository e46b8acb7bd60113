"""Engines that are built and run here: numbers beside PyTorch, searches token for token, and how long a step takes."""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from builders.build import main as build
from mplug.checkpoint import load_checkpoint
from mplug.decoding.beam_search import SearchOptions
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.runtime import open_decoder, open_graph
from mplug.runtime.room import Room
from mplug.runtime.search_state import new_search
from mplug.runtime.torch import eager_decoder
from tests.parity.golden import vision_inputs

DATA = Path(__file__).parents[1] / "parity" / "data"
CLS, SEP = 101, 102


@pytest.fixture(scope="session", params=["fp32", "fp16", "bf16"])
def repository(request, target, tmp_path_factory):
    """A golden checkpoint's repository; the builder itself compares every engine with PyTorch on the GPU."""
    output = tmp_path_factory.mktemp("gpu") / f"{target}-{request.param}"
    arguments = [str(DATA / "caption"), "--output", str(output), "--target", target, "--precision", request.param]
    assert build(arguments) == 0
    return output


def test_every_engine_was_compared_on_the_gpu(repository):
    errors = json.loads((repository / "build_info.json").read_text())["relative_errors"]
    assert {"vision_encoder.IMAGE_STATES on the GPU", "text_decoder.LOG_PROBABILITIES on the GPU"} <= set(errors)


def test_batches(repository):
    golden = np.load(DATA / "caption" / "tensors.npz")
    pictures = vision_inputs("caption")
    graph = open_graph(repository / "vision_encoder" / "1", "vision_encoder")
    for count in (1, 5, 2):
        states = graph({name: array[:count] for name, array in pictures.items()})["IMAGE_STATES"]
        reference = golden["image_embeds"][:count]
        assert np.abs(states - reference).max() < 0.06 * np.abs(reference).max()


def test_searches_end_as_on_the_cpu(repository):
    """In fp32 every token and score; in half precision most, for weights that are random."""
    network = load_checkpoint(DATA / "caption")[0]
    found = search(open_decoder(repository / "text_decoder" / "1"), network)
    expected = search(eager_decoder(network, SEP), network)
    same = [one[0] == other[0] for one, other in zip(found, expected, strict=True)]
    if json.loads((repository / "build_info.json").read_text())["precision"] == "fp32":
        assert all(same)
        np.testing.assert_allclose([one[1] for one in found], [other[1] for other in expected], atol=5e-3)
    else:
        assert np.mean(same) > 0.6


def search(decoder, network):
    """24 requests that differ in beams and lengths, side by side; the best hypothesis of each."""
    states = np.load(DATA / "caption" / "tensors.npz")["image_embeds"]
    loop, answers, events = DecodeLoop(decoder, max_slots=16), {}, [threading.Event() for _ in range(24)]

    def answer(index, value):
        answers[index] = value
        events[index].set()

    try:
        for index in range(24):
            loop.submit(
                DecodeRequest(
                    encoder_states=states[index % len(states)],
                    encoder_mask=np.ones(states.shape[1], np.int32),
                    prefix=[CLS],
                    options=SearchOptions(1 + index % 5, 2, 4 + index % 9, 1, 0.6, SEP),
                    token_range=(0, network.config.text.vocab_size),
                    done=lambda value, index=index: answer(index, value),
                    failed=lambda error, index=index: answer(index, error),
                )
            )
        assert all(event.wait(120) for event in events)
    finally:
        loop.stop()
    for value in answers.values():
        if isinstance(value, BaseException):
            raise value
    return [(answers[index][0].token_ids, answers[index][0].score) for index in range(24)]


def test_a_step_is_recorded_and_timed(repository):
    """What a step takes, printed: 32 slots of 5 beams cost less than 32 times one slot."""
    decoder = open_decoder(repository / "text_decoder" / "1")
    decoder.reserve(Room(32, 24, 5, 32))
    states = np.load(DATA / "caption" / "tensors.npz")["image_embeds"][0]
    for slot in range(32):
        decoder.admit(slot, states)
        decoder.load(slot, endless_search())
    medians = {slots: statistics.median(timed(decoder, slots) for _ in range(50)) for slots in (1, 8, 32)}
    measured = ", ".join(f"{slots} slots {seconds * 1e3:.2f} ms" for slots, seconds in medians.items())
    sys.stderr.write(f"\n{repository.name}: {measured}\n")
    assert all(step._graph is not None for step in decoder._steps.values())
    assert medians[32] < 16 * medians[1]


def endless_search():
    """A search that stays where it is however often it is stepped: a slot that is over keeps its position."""
    return new_search(
        prefix=[CLS], encoder_mask=np.ones(17, np.int32), beams=5, min_length=0, max_length=1, token_range=(0, 900)
    )


def timed(decoder, slots):
    """Seconds of one step."""
    started = time.perf_counter()
    decoder.step(slots, 5, 1)
    return time.perf_counter() - started
