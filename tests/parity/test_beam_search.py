"""Every n-best list of the published implementation, token for token, through the decode loop."""

from __future__ import annotations

import threading
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from golden import DATA, assert_same_hypotheses, expected, tensors

from mplug.checkpoint import load_checkpoint
from mplug.decoding.beam_search import SearchOptions
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.runtime.graph_decoder import GraphDecoder
from mplug.runtime.torch import torch_graphs

CLS, SEP = 101, 102


@cache
def network_of(case: str, image_size: int | None = None):
    return load_checkpoint(DATA / case, image_size=image_size)[0]


def search_all(network, requests: list[SimpleNamespace]) -> tuple[list, list[int]]:
    """Run requests side by side through one loop; (ids from `[CLS]`, score) per hypothesis, and each step's slots."""
    graphs, text = torch_graphs(network, SEP), network.config.text
    sizes = {"layers": text.text_decode_layers, "heads": text.heads, "head_width": text.head_width}
    batches: list[int] = []

    def step(inputs):
        batches.append(len(inputs["TOKENS"]))
        return graphs["text_decoder_step"](inputs)

    loop = DecodeLoop(GraphDecoder(graphs["text_decoder_prefill"], step, sizes))
    answers: list = [None] * len(requests)
    events = [threading.Event() for _ in requests]

    def answer(index: int, value) -> None:
        answers[index] = value
        events[index].set()

    try:
        for index, request in enumerate(requests):
            search = request.search
            loop.submit(
                DecodeRequest(
                    encoder_states=request.states,
                    encoder_mask=np.ones(len(request.states), np.int32)
                    if getattr(request, "mask", None) is None
                    else request.mask,
                    prefix=[getattr(request, "start", CLS)],
                    options=SearchOptions(
                        search["num_beams"],
                        search["min_length"],
                        search["max_length"],
                        search["num_beams"],
                        search.get("length_penalty_alpha", 0.6),
                        SEP,
                    ),
                    token_range=getattr(request, "token_range", (0, network.config.text.vocab_size)),
                    done=lambda value, index=index: answer(index, value),
                    failed=lambda error, index=index: answer(index, error),
                )
            )
        for event in events:
            assert event.wait(60)
    finally:
        loop.stop()
    for value in answers:
        if isinstance(value, BaseException):
            raise value
    return [[([CLS, *h.token_ids], h.score) for h in value] for value in answers], batches


def fused_states(case: str) -> tuple[np.ndarray, np.ndarray]:
    golden = tensors(case)
    mask = golden["attention_mask"].astype(np.int32)
    states = np.concatenate([golden["fused_image"], golden["fused_text"]], axis=1)
    return states, np.concatenate([np.ones(golden["fused_image"].shape[:2], np.int32), mask], axis=1)


@pytest.mark.parametrize("search", expected("caption")["beam_search"], ids=lambda s: f"{s['num_beams']} beams")
def test_caption(search):
    states = tensors("caption")["image_embeds"]
    answers, _ = search_all(network_of("caption"), [SimpleNamespace(states=s, search=search) for s in states])
    for index, (answer, reference) in enumerate(zip(answers, search["nbest"], strict=True)):
        assert_same_hypotheses(answer, reference, f"image {index}")


@pytest.mark.parametrize("search", expected("vqa")["beam_search"], ids=lambda s: f"{s['num_beams']} beams")
def test_vqa(search):
    requests = [SimpleNamespace(states=s, mask=m, search=search) for s, m in zip(*fused_states("vqa"), strict=True)]
    answers, _ = search_all(network_of("vqa"), requests)
    for answer, reference in zip(answers, search["nbest"], strict=True):
        assert_same_hypotheses(answer, reference)


def test_video():
    search = {"num_beams": 5, "min_length": 1, "max_length": 10}
    golden = expected("video")
    requests = [SimpleNamespace(states=s, mask=m, search=search) for s, m in zip(*fused_states("video"), strict=True)]
    requests += [SimpleNamespace(states=s, search=search) for s in tensors("video")["frame_embeds"]]
    answers, _ = search_all(network_of("video"), requests)
    for answer, reference in zip(answers, [*golden["answer"], *golden["caption_from_frames_alone"]], strict=True):
        assert_same_hypotheses(answer, reference[: len(answer)])


def test_another_image_size():
    golden = expected("resize")
    search = {"num_beams": 5, "min_length": 4, "max_length": 14}
    network = network_of("caption", golden["image_res"])
    requests = [SimpleNamespace(states=s, search=search) for s in tensors("resize")["image_embeds"]]
    answers, _ = search_all(network, requests)
    for answer, reference in zip(answers, golden["nbest"], strict=True):
        assert_same_hypotheses(answer, reference)


def test_grounding_tokens():
    """Greedy search over the tokens of coordinates alone."""
    golden = expected("grounding")
    vocabulary = (DATA / "grounding" / "vocab.txt").read_text().splitlines()
    first = vocabulary.index(golden["first_bin_token"])
    search = {"num_beams": 1, "min_length": 0, "max_length": 4}
    requests = [
        SimpleNamespace(
            states=s,
            mask=m,
            search=search,
            start=vocabulary.index(golden["prefix_token"]),
            token_range=(first, first + golden["bins"]),
        )
        for s, m in zip(*fused_states("grounding"), strict=True)
    ]
    answers, _ = search_all(network_of("grounding"), requests)
    assert [answer[0][0][1:] for answer in answers] == golden["box_tokens"]


def test_mixed_requests_share_steps_and_answer_as_alone():
    """Beams, lengths and arrival differ; tokens and scores do not."""
    states = tensors("caption")["image_embeds"]
    requests = [
        SimpleNamespace(states=states[index % len(states)], search=search)
        for index, search in enumerate(expected("caption")["beam_search"] * 4)
    ]
    together, batches = search_all(network_of("caption"), requests)
    assert max(batches) >= 12
    for request, answer in zip(requests, together, strict=True):
        alone, _ = search_all(network_of("caption"), [request])
        assert [ids for ids, _ in alone[0]] == [ids for ids, _ in answer]
        np.testing.assert_allclose([s for _, s in alone[0]], [s for _, s in answer], rtol=1e-4)
