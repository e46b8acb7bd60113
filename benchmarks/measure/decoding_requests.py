"""Requests for a decode loop, and a loop that answers all of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.presets import BEAMS, CLS_ID, SEP_ID, TOKENS
from mplug.contract import MAX_BEAMS
from mplug.decoding.beam_search import Hypothesis, SearchOptions
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.network import MPlug
from mplug.runtime.interface import Decoder

#: Tokens that a prompt may begin with.
FIRST_WORD = 1000
#: A decoder that does not answer is given up after so many seconds.
PATIENCE = 600.0


def requests_for(states: Sequence[Any], network: MPlug) -> list[DecodeRequest]:
    """Return a request for a caption of TOKENS tokens and BEAMS beams for each `[A, W]`, on the host or a GPU."""
    options = SearchOptions(BEAMS, TOKENS, TOKENS, 1, 0.6, SEP_ID)
    return [_request(each, [CLS_ID], options, network) for each in states]


def mixed_requests(network: MPlug, device: torch.device, number: int, seed: int = 0) -> list[DecodeRequest]:
    """Return requests that differ in beams, lengths, prompts and encoder states, which lie on the device."""
    random = np.random.default_rng(seed)
    width, tokens = network.config.text.hidden_size, network.config.vision.tokens
    requests = []
    for _ in range(number):
        states = random.standard_normal((random.integers(1, tokens + 1), width), np.float32)
        least, most = sorted(random.integers(1, TOKENS + 1, 2).tolist())
        beams = int(random.integers(1, MAX_BEAMS + 1))
        prompt = random.integers(FIRST_WORD, network.config.text.vocab_size, random.integers(0, 4)).tolist()
        options = SearchOptions(beams, least, most, beams, 0.6, SEP_ID)
        requests.append(_request(torch.from_numpy(states).to(device), [CLS_ID, *prompt], options, network))
    return requests


def _request(states: Any, prefix: list[int], options: SearchOptions, network: MPlug) -> DecodeRequest:
    mask, vocabulary = np.ones(len(states), np.int32), network.config.text.vocab_size
    return DecodeRequest(states, mask, prefix, options, (0, vocabulary), done=print, failed=print)


def decode(decoder: Decoder, requests: Sequence[DecodeRequest], slots: int) -> list[list[Hypothesis]]:
    """Answer all requests with at most `slots` of them in flight. Raises the error of the first that fails."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the decoder reads states on a stream of its own: they have to be complete
    answers: list[Any] = [None] * len(requests)
    left = threading.Semaphore(0)

    def answer(index: int, value: Any) -> None:
        answers[index] = value
        left.release()

    loop = DecodeLoop(decoder, max_slots=slots, max_queue=len(requests), max_cache_bytes=64 << 30)
    try:
        for index, request in enumerate(requests):
            request.done = request.failed = partial(answer, index)
            loop.submit(request)
        for _ in requests:
            if not left.acquire(timeout=PATIENCE):
                raise RuntimeError(f"the decoder has not answered for {PATIENCE:.0f} s")
    finally:
        loop.stop()
    for value in answers:
        if isinstance(value, BaseException):
            raise value
    return answers
