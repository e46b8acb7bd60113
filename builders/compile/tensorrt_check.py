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
from mplug.contract import GraphSpec
from mplug.network import MPlug
from mplug.runtime.graph_decoder import GraphDecoder
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


def onnx_decoder(network: MPlug, prefill: OnnxGraph, step: OnnxGraph) -> GraphDecoder:
    """Return the decoder that these two graphs of `network` are."""
    text = network.config.text
    sizes = {"layers": text.text_decode_layers, "heads": text.heads, "head_width": text.head_width}
    return GraphDecoder(prefill, step, sizes)


@torch.inference_mode()
def compare_onnx(onnx_graph: OnnxGraph, spec: GraphSpec, graph: torch.nn.Module, network: MPlug) -> dict[str, float]:
    """Return the relative error per output of an exported graph, except whole numbers, which near-ties may swap."""
    inputs = example_inputs(spec, network, seed=1)
    references = graph(*inputs.values())
    outputs = onnx_graph({name: tensor.numpy() for name, tensor in inputs.items()})
    return {
        tensor.name: relative_error(outputs[tensor.name], reference.numpy())
        for tensor, reference in zip(spec.outputs, references, strict=True)
        if tensor.dtype == "FP32"
    }
