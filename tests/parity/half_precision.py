"""The golden checkpoints' graphs as ONNX, exported once per run of the tests: exporting is what takes the time."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import onnx
from golden import DATA
from torch import nn

from builders.compile.export import example_inputs, export
from builders.compile.tensorrt_precision import to_half
from mplug.checkpoint import load_checkpoint
from mplug.contract import GraphSpec
from mplug.network import MPlug
from mplug.network.graphs import graphs_of

SEP = 102
_FOLDER = tempfile.TemporaryDirectory(prefix="mplug-half-precision-")

#: Each graph of every kind once: with and without heads, with and without connected fusion layers.
GRAPHS = (
    ("caption", "vision_encoder"),
    ("caption", "text_decoder_prefill"),
    ("caption", "text_decoder_step"),
    ("retrieval", "vision_encoder"),
    ("retrieval", "text_encoder"),
    ("retrieval", "fusion_encoder"),
    ("vqa", "fusion_encoder"),
)


@cache
def network_of(case: str) -> MPlug:
    """A golden checkpoint's network."""
    return load_checkpoint(DATA / case)[0]


@cache
def graph_of(case: str, name: str) -> tuple[GraphSpec, nn.Module]:
    """One of its graphs."""
    found = {spec.name: (spec, graph.eval()) for spec, graph in graphs_of(network_of(case), SEP)}
    return found[name]


@cache
def onnx_of(case: str, name: str, precision: str = "fp32") -> Path:
    """Its ONNX file."""
    path = Path(_FOLDER.name) / f"{case}.{name}.{precision}.onnx"
    if precision == "fp32":
        spec, graph = graph_of(case, name)
        export(spec, graph, example_inputs(spec, network_of(case)), path)
    else:
        onnx.save(to_half(onnx.load(onnx_of(case, name)), precision), path)
    return path
