"""The reference runtime: the network's own PyTorch modules, in fp32, on a CPU.

A stage's folder holds its parts of the weights (`model.safetensors`) and the checkpoint's two
configuration files.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from mplug.config import read_config
from mplug.contract import GraphSpec
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.runtime.graph_decoder import GraphDecoder
from mplug.runtime.interface import StageInfo, threads


def open_graph(info: StageInfo, name: str) -> TorchGraph:
    """Load the weights of graph `name`."""
    return _load(info)[name]


def open_decoder(info: StageInfo) -> GraphDecoder:
    """Load the decoder's weights."""
    graphs = _load(info)
    return GraphDecoder(graphs["text_decoder_prefill"], graphs["text_decoder_step"], info.sizes)


def eager_decoder(network: MPlug, end_id: int) -> GraphDecoder:
    """Return the decoder of a network in memory; `end_id` is the id of `[SEP]`."""
    graphs, text = torch_graphs(network, end_id), network.config.text
    sizes = {"layers": text.text_decode_layers, "heads": text.heads, "head_width": text.head_width}
    return GraphDecoder(graphs["text_decoder_prefill"], graphs["text_decoder_step"], sizes)


def torch_graphs(network: MPlug, end_id: int) -> dict[str, TorchGraph]:
    """Return the graphs of a network by name; `end_id` is the id of `[SEP]`."""
    return {spec.name: TorchGraph(spec, module) for spec, module in graphs_of(network, end_id)}


class TorchGraph:
    """One graph, run eagerly."""

    def __init__(self, spec: GraphSpec, module: nn.Module) -> None:
        self._spec, self._module = spec, module

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._module(*(torch.from_numpy(np.asarray(inputs[name])) for name in self._spec.input_names))
        return {name: tensor.numpy() for name, tensor in zip(self._spec.output_names, outputs, strict=True)}


def _load(info: StageInfo) -> dict[str, TorchGraph]:
    """Read the graphs that a stage's folder has weights for."""
    torch.set_num_threads(threads())
    weights = load_file(info.folder / "model.safetensors")
    config = read_config(info.folder / "config.yaml", info.folder / "config_bert.json")
    config = config.at_image_size(info.sizes["image_size"])
    network = MPlug(config, parts=tuple({key.split(".")[0] for key in weights})).eval()
    network.load_state_dict(weights)
    return torch_graphs(network, info.sizes["end_id"])
