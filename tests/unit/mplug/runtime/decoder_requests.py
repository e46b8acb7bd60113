"""Requests that differ in all they may, run through any decoder; what its steps chose beside another's."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from mplug.checkpoint import load_checkpoint
from mplug.decoding.beam_search import SearchOptions
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.network.graphs import graphs_of
from mplug.runtime.search_state import new_search
from mplug.runtime.torch_decoder import SPARE_BYTES, Record, TorchDecoder

DATA = Path(__file__).parents[3] / "parity" / "data"
CLS, SEP = 101, 102
SLOTS = 16


@cache
def network_of(case: str):
    return load_checkpoint(DATA / case)[0]


def sizes_of(network) -> dict[str, int]:
    text = network.config.text
    return {"layers": text.text_decode_layers, "heads": text.heads, "head_width": text.head_width}


def decoder_as_on_a_gpu(record: Record, case: str = "caption") -> TorchDecoder:
    """PyTorch's decoder on the CPU, as it works on a GPU: recorded by `record`, four steps ahead, caches kept."""
    network = network_of(case)
    graphs = {spec.name: graph for spec, graph in graphs_of(network, SEP)}
    prefill, step = graphs["text_decoder_prefill"], graphs["text_decoder_step"]
    decoder = TorchDecoder(prefill, step, sizes_of(network), torch.device("cpu"), chunk=4, record=record)
    decoder.spare_bytes = SPARE_BYTES
    return decoder


def golden(case: str):
    return np.load(DATA / case / "tensors.npz")


def search(decoder, network, requests):
    """All requests through one loop, the first half before the second; best hypotheses as ids and scores."""
    loop = DecodeLoop(decoder, max_slots=SLOTS)
    answers, events = [None] * len(requests), [threading.Event() for _ in requests]

    def answer(index, value):
        answers[index] = value
        events[index].set()

    try:
        for index, request in enumerate(requests):
            if index == len(requests) // 2:
                events[0].wait(60)
            loop.submit(
                DecodeRequest(
                    encoder_states=request.states,
                    encoder_mask=np.ones(len(request.states), np.int32),
                    prefix=request.prefix,
                    options=SearchOptions(request.beams, 2, request.length, request.beams, 0.6, SEP),
                    token_range=(0, network.config.text.vocab_size),
                    done=lambda value, index=index: answer(index, value),
                    failed=lambda error, index=index: answer(index, error),
                )
            )
        assert all(event.wait(120) for event in events)
    finally:
        loop.stop()
    for value in answers:
        if isinstance(value, BaseException):
            raise value
    return [[(hypothesis.token_ids, hypothesis.score) for hypothesis in value] for value in answers]


def mixed_requests():
    """Requests that differ in beams, lengths, prefixes and encoder states."""
    states = golden("caption")["image_embeds"]
    return [
        SimpleNamespace(
            states=states[index % len(states)][: 17 - index % 3],
            beams=1 + index * 2 % 5,
            length=3 + index % 8,
            prefix=[CLS, *range(200, 200 + index % 3)],
        )
        for index in range(14)
    ]


def begin(decoder, slots, beams, room, states=None):
    """Start a search of 20 tokens in each of the first slots."""
    states = golden("caption")["image_embeds"] if states is None else states
    decoder.reserve(room)
    for slot in range(slots):
        decoder.admit(slot, states[slot])
        search = new_search(
            prefix=[CLS],
            encoder_mask=np.ones(len(states[slot]), np.int32),
            beams=beams,
            min_length=20,
            max_length=20,
            token_range=(0, 900),
        )
        decoder.load(slot, search)


def assert_same_choices(one, other):
    """Of a GPU's step, which is as wide as the caches, and the host's."""
    beams = other.tokens.shape[1]
    np.testing.assert_array_equal(one.tokens[:, :beams], other.tokens)
    np.testing.assert_array_equal(one.parents[:, :beams], other.parents)
    np.testing.assert_allclose(one.scores[:, :beams], other.scores, rtol=1e-4)
    np.testing.assert_array_equal(one.over, other.over)
