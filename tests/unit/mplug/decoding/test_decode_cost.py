"""What a step costs: the same at every position, however long the text, because nothing is computed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from decode_fakes import ask
from torch.utils.flop_counter import FlopCounterMode

from mplug.checkpoint import load_checkpoint
from mplug.contract import decoder_step
from mplug.decoding.loop import DecodeLoop
from mplug.network import MPlug
from mplug.network.graphs import DecoderPrefillGraph, DecoderStepGraph
from mplug.runtime.host_decoder import HostDecoder
from mplug.runtime.room import Room
from mplug.runtime.search_state import new_search

GOLDEN = Path(__file__).parents[3] / "parity" / "data" / "caption"
SEP = 102
STEPS = 21  # from position 0 to 20


class CountingDecoder(HostDecoder):
    """Caches as they are served, over graphs that only count: what each call was given, and its shapes."""

    LAYERS, HEADS, HEAD_WIDTH = 2, 2, 4

    def __init__(self) -> None:
        super().__init__(
            layers=self.LAYERS, heads=self.HEADS, head_width=self.HEAD_WIDTH, cache_dtype=np.dtype(np.float32)
        )
        self.bindings: list[list[tuple[int, ...]]] = []
        self.prefills: list[tuple[int, ...]] = []
        self.steps: list[dict[str, tuple[int, ...]]] = []
        self.positions: list[list[int]] = []

    def _bind(self, past, cross):
        self.bindings.append([array.shape for array in (*past, *cross)])

    def _prefill(self, encoder_states):
        self.prefills.append(encoder_states.shape)
        shape = (1, self.HEADS, encoder_states.shape[1], self.HEAD_WIDTH)
        return [np.ones(shape, np.float32)] * (2 * self.LAYERS)

    def _bind_search(self, inputs):
        self.inputs = inputs

    def _run_step(self, slots):
        self.steps.append({name: array.shape for name, array in self.inputs.items()})
        self.positions.append(self.inputs["POSITIONS"].tolist())
        beams, positions, options = self.inputs["TOKENS"].shape[1], self.inputs["POSITIONS"], self.inputs["OPTIONS"]
        over = positions + 2 - options[:, 0] >= options[:, 3]
        return {
            "NEXT_TOKENS": np.full((slots, beams), 10, np.int32),
            "NEXT_SCORES": self.inputs["SCORES"] - 1,
            "NEXT_ANCESTRY": self.inputs["ANCESTRY"],
            "NEXT_POSITIONS": positions + 1,
            "NEXT_OVER": over.astype(np.int32),
            "PARENTS": np.zeros((slots, beams), np.int32),
            "WRITTEN": np.ones((2 * self.LAYERS, slots, self.HEADS, beams, self.HEAD_WIDTH), np.float32),
        }


def test_a_request_is_prefilled_once_and_its_steps_are_alike() -> None:
    decoder = CountingDecoder()
    loop = DecodeLoop(decoder)
    try:
        ask(loop, 3, STEPS, beams=5).tokens()
    finally:
        loop.stop()
    assert decoder.prefills == [(1, 4, 4)]  # request 3 brings four states
    assert decoder.positions == [[position] for position in range(STEPS)]
    # One token for each beam goes in, never the text so far, and every shape stays what it was.
    assert decoder.steps[0]["TOKENS"] == (1, 5)
    assert all(step == decoder.steps[0] for step in decoder.steps)
    # The caches are bound once: nothing is reallocated or copied from step to step.
    assert len(decoder.bindings) == 1
    positions = decoder.bindings[0][0][2]
    assert STEPS <= positions < STEPS + 8


def test_requests_side_by_side_are_each_prefilled_once() -> None:
    decoder = CountingDecoder()
    loop = DecodeLoop(decoder)
    try:
        outcomes = [ask(loop, name, STEPS, beams=3) for name in range(8)]
        for outcome in outcomes:
            outcome.tokens()
    finally:
        loop.stop()
    assert [states for _, states, _ in decoder.prefills] == [name % 5 + 1 for name in range(8)]
    assert len(decoder.steps) < 2 * STEPS
    assert sum(step["TOKENS"][0] for step in decoder.steps) == 8 * STEPS


@pytest.fixture(scope="module")
def network() -> MPlug:
    return load_checkpoint(GOLDEN)[0]


class MeasuredDecoder(HostDecoder):
    """The network itself, every call's multiplications counted."""

    def __init__(self, network: MPlug) -> None:
        text = network.config.text
        super().__init__(
            layers=text.text_decode_layers,
            heads=text.heads,
            head_width=text.head_width,
            cache_dtype=np.dtype(np.float32),
        )
        self.graphs = DecoderPrefillGraph(network), DecoderStepGraph(network, SEP)
        self.outputs = decoder_step(text.text_decode_layers).output_names
        self.prefill_flops: list[int] = []
        self.step_flops: list[int] = []

    def _bind(self, past, cross):
        self.caches = [*past, *cross]

    def _prefill(self, encoder_states):
        flops, outputs = flops_of(self.graphs[0], encoder_states)
        self.prefill_flops.append(flops)
        return [tensor.numpy() for tensor in outputs]

    def _bind_search(self, inputs):
        self.inputs = inputs

    def _run_step(self, slots):
        caches = [cache[:slots] for cache in self.caches]
        flops, outputs = flops_of(self.graphs[1], *self.inputs.values(), *caches)
        self.step_flops.append(flops)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, outputs, strict=True)}


@torch.no_grad()
def flops_of(graph: torch.nn.Module, *arrays: np.ndarray):
    with FlopCounterMode(display=False) as counter:
        outputs = graph(*map(torch.from_numpy, arrays))
    return counter.get_total_flops(), outputs


def test_a_step_multiplies_as_much_at_position_3_as_at_20(network: MPlug) -> None:
    random = np.random.default_rng(0)
    decoder, text = MeasuredDecoder(network), network.config.text
    states = random.standard_normal((network.config.vision.tokens, text.hidden_size), np.float32)
    beams, room = 5, 24
    decoder.reserve(Room(1, room, beams, len(states)))
    decoder.admit(0, states)
    search = new_search(
        prefix=[0],
        encoder_mask=np.ones(len(states), np.int32),
        beams=beams,
        min_length=STEPS,
        max_length=STEPS,
        token_range=(0, text.vocab_size),
    )
    decoder.load(0, search)
    positions = []
    for _ in range(STEPS):
        positions.append(int(decoder.inputs["POSITIONS"][0]) if positions else 0)
        decoder.step(1, beams)
    assert positions == list(range(STEPS))
    assert len(decoder.prefill_flops) == 1
    assert decoder.step_flops[3] == decoder.step_flops[20] > 0
    assert len(set(decoder.step_flops)) == 1
    # Against recomputing the text at every step with the states tiled over the beams, as published.
    ids = random.integers(0, text.vocab_size, (beams, STEPS), np.int64)
    tiled = np.repeat(states[None], beams, axis=0)
    mask = np.ones(tiled.shape[:2], np.int64)
    recomputed, _ = flops_of(network.text_decoder, ids, tiled, mask)
    assert decoder.step_flops[20] < recomputed / 10
