"""Half-precision graphs beside PyTorch in fp32, on a CPU: what can be known of an engine without a GPU.

The ONNX file that TensorRT compiles is run by ONNX Runtime with the roundings that a GPU makes
(`tensorrt_precision.rounded_emulation`): per output as a relative error, and over whole searches as the
share of requests that get the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import onnx
import onnxruntime
import torch

from builders.compare import EagerDecoder, relative_error
from builders.export import example_inputs
from builders.tensorrt_precision import HALF_TYPES, rounded_emulation
from mplug.beam_search import Hypothesis, SearchOptions
from mplug.contract import GraphSpec, decoder_prefill, decoder_step
from mplug.decode_loop import DecodeLoop, DecodeRequest
from mplug.network import MPlug
from mplug.runtime.host_decoder import HostDecoder
from mplug.runtime.interface import Decoder, threads

SEARCH_SECONDS = 600  # that one search may take


class OnnxGraph:
    """A graph in any precision, run by ONNX Runtime on the CPU; fp32 arrays in and out."""

    def __init__(self, path: Path, precision: str) -> None:
        model = onnx.load(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3
        if precision in HALF_TYPES:
            model = rounded_emulation(model)
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = self._session.run(None, {name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, answers, strict=True))


class OnnxDecoder(HostDecoder):
    """The decoder's two graphs, run by ONNX Runtime over caches on the host."""

    def __init__(self, network: MPlug, prefill: OnnxGraph, step: OnnxGraph) -> None:
        text = network.config.text
        super().__init__(layers=text.text_decode_layers, heads=text.heads, head_width=text.head_width,
                         cache_dtype=np.dtype(np.float32))
        self._graphs = prefill, step
        self._names = decoder_step(text.text_decode_layers).input_names[6:]
        self._prefilled = decoder_prefill(text.text_decode_layers).output_names
        self._caches: list[np.ndarray] = []

    def _bind(self, past: list[np.ndarray], cross: list[np.ndarray]) -> None:
        self._caches = [*past, *cross]

    def _prefill(self, encoder_states: np.ndarray) -> list[np.ndarray]:
        answers = self._graphs[0]({"ENCODER_STATES": encoder_states})
        return [answers[name] for name in self._prefilled]

    def _run_step(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        slots = inputs["TOKENS"].shape[0]
        caches = {name: cache[:slots] for name, cache in zip(self._names, self._caches, strict=True)}
        answers = self._graphs[1]({**inputs, **caches})
        return answers["NEXT_TOKENS"], answers["LOG_PROBABILITIES"], answers["WRITTEN"]


@torch.inference_mode()
def compare_onnx(onnx_graph: OnnxGraph, spec: GraphSpec, graph: torch.nn.Module, network: MPlug) -> dict[str, float]:
    """Relative error per output of an exported graph, NEXT_TOKENS apart, which near-ties may swap."""
    inputs = example_inputs(spec, network, seed=1)
    references = graph(*inputs.values())
    outputs = onnx_graph({name: tensor.numpy() for name, tensor in inputs.items()})
    return {
        name: relative_error(outputs[name], reference.numpy())
        for name, reference in zip(spec.output_names, references, strict=True)
        if name != "NEXT_TOKENS"
    }


@dataclass(frozen=True)
class Agreement:
    """How whole searches end in two decoders."""

    requests: int
    same: int  #: whose best hypothesis has the same tokens
    worst_score: float  #: largest difference of scores where it has

    @property
    def share(self) -> float:
        return self.same / self.requests


def search_agreement(network: MPlug, end_id: int, start_id: int, decoder: Decoder,
                     reference_states: Sequence[np.ndarray], states: Sequence[np.ndarray]) -> Agreement:
    """Search with the network in fp32 over `reference_states`, and with `decoder` over `states`.

    Both are lists of encoder states `[A, W]`, one per request, as the encoders of either side give them.
    The search is the checkpoint's own.
    """
    expected = _search(EagerDecoder(network, end_id), network, end_id, start_id, reference_states)
    found = _search(decoder, network, end_id, start_id, states)
    same = [(one, other) for one, other in zip(expected, found, strict=True) if one.token_ids == other.token_ids]
    worst = max((abs(one.score - other.score) for one, other in same), default=0.0)
    return Agreement(len(expected), len(same), worst)


def _search(decoder: Decoder, network: MPlug, end_id: int, start_id: int,
            states: Sequence[np.ndarray]) -> list[Hypothesis]:
    generation = network.config.generation
    options = SearchOptions(generation.num_beams, generation.min_length, generation.max_length, 1,
                            generation.length_penalty, end_id)
    answers: dict[int, list[Hypothesis] | BaseException] = {}
    events = [Event() for _ in states]

    def answered(index: int) -> Callable[[list[Hypothesis] | BaseException], None]:
        def answer(value: list[Hypothesis] | BaseException) -> None:
            answers[index] = value
            events[index].set()
        return answer

    loop = DecodeLoop(decoder, max_slots=16, max_queue=len(states))
    try:
        for index, one in enumerate(states):
            loop.submit(DecodeRequest(
                encoder_states=np.ascontiguousarray(one, np.float32), encoder_mask=np.ones(len(one), np.int32),
                prefix=[start_id], options=options, token_range=(0, network.config.text.vocab_size),
                done=answered(index), failed=answered(index),
            ))
        for event in events:
            if not event.wait(SEARCH_SECONDS):
                raise TimeoutError(f"a search takes more than {SEARCH_SECONDS} s")
    finally:
        loop.stop()
    for answer in answers.values():
        if isinstance(answer, BaseException):
            raise answer
    return [answers[index][0] for index in range(len(states))]
