"""Compiled stages beside PyTorch, on the same inputs."""

from __future__ import annotations

import numpy as np
import torch

from builders.compile.export import example_inputs
from mplug.contract import MAX_BEAMS, GraphSpec
from mplug.network import MPlug
from mplug.runtime import Decoder, Graph
from mplug.runtime.room import Room
from mplug.runtime.search_state import new_search
from mplug.runtime.torch import eager_decoder

#: Largest error relative to the largest magnitude of an output, by precision.
TOLERANCES = {"fp32": 1e-4, "bf16": 6e-2, "fp16": 1e-2, "int8": 0.2}
REQUESTS, STEPS = 4, 4


class ArtefactError(RuntimeError):
    """A compiled stage does not compute what PyTorch computes."""


def relative_error(actual: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest deviation over the largest magnitude. `actual` may lie on a GPU."""
    actual = np.asarray(actual)
    if actual.shape != reference.shape:
        raise ArtefactError(f"shape {actual.shape} instead of {reference.shape}")
    return float(np.abs(actual.astype(np.float64) - reference).max() / max(np.abs(reference).max(), 1e-12))


@torch.inference_mode()
def compare_graph(compiled: Graph, spec: GraphSpec, graph: torch.nn.Module, network: MPlug) -> dict[str, float]:
    """Return the relative error per output of a compiled graph beside its PyTorch module."""
    inputs = example_inputs(spec, network, seed=1)
    references = graph(*inputs.values())
    outputs = compiled({name: tensor.numpy() for name, tensor in inputs.items()})
    return {
        name: relative_error(outputs[name], reference.numpy())
        for name, reference in zip(spec.output_names, references, strict=True)
    }


def compare_decoders(compiled: Decoder, network: MPlug, end_id: int) -> dict[str, float]:
    """Return the relative error of log-probabilities over some steps of requests whose beams swap ancestors.

    Only the first beam of each request may be continued, so that a step's choices are that beam's likeliest tokens.
    Both decoders are given the same tokens and ancestry at every step, whatever they chose at the one before.
    """
    vocabulary, width = network.config.text.vocab_size, network.config.text.hidden_size
    random = np.random.default_rng(1)
    decoders = (compiled, eager_decoder(network, end_id))
    states = network.config.vision.tokens
    for decoder in decoders:
        decoder.reserve(Room(REQUESTS, STEPS, MAX_BEAMS, states))
    for slot in range(REQUESTS):
        encoder_states = random.standard_normal((states, width), np.float32)
        for decoder in decoders:
            decoder.admit(slot, encoder_states)
    search = new_search(
        prefix=[0],
        encoder_mask=np.ones(states, np.int32),
        beams=MAX_BEAMS,
        min_length=0,
        max_length=STEPS,
        token_range=(0, vocabulary),
    )
    ancestry = np.full((MAX_BEAMS, STEPS), -1, np.int32)
    worst = 0.0
    for position in range(STEPS):
        for slot in range(REQUESTS):
            search |= {
                "TOKENS": random.integers(0, vocabulary, MAX_BEAMS, np.int32),
                "POSITIONS": np.int32(position),
                "ANCESTRY": ancestry,
            }
            for decoder in decoders:
                decoder.load(slot, search)
        actual, reference = (decoder.step(REQUESTS, MAX_BEAMS, 1)[0].scores for decoder in decoders)
        worst = max(worst, relative_error(actual, reference))
        ancestry[:, position] = np.arange(MAX_BEAMS)
        ancestry = ancestry[random.permutation(MAX_BEAMS)]
    return {"LOG_PROBABILITIES": worst}
