"""Half-precision graphs beside PyTorch in fp32, on a CPU: what can be known of an engine without a GPU.

The ONNX file that TensorRT compiles is run by ONNX Runtime with the roundings that a GPU makes
(`tensorrt_precision.rounded_emulation`), and its outputs are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from builders.compile.compare import relative_error
from builders.compile.export import example_inputs
from builders.compile.tensorrt_precision import HALF_TYPES, rounded_emulation
from mplug.contract import GraphSpec, decoder_prefill, decoder_step
from mplug.network import MPlug
from mplug.runtime.host_decoder import HostDecoder
from mplug.runtime.interface import threads


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
        super().__init__(
            layers=text.text_decode_layers,
            heads=text.heads,
            head_width=text.head_width,
            cache_dtype=np.dtype(np.float32),
        )
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
