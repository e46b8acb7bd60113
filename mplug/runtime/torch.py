"""The reference runtime: the network's own PyTorch modules, in fp32, on a CPU.

A stage's folder holds its parts of the weights (`model.safetensors`) and the checkpoint's two
configuration files.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import load_file

from mplug.config import read_config
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.runtime.host_decoder import HostDecoder
from mplug.runtime.interface import StageInfo, threads


def open_graph(info: StageInfo, name: str) -> TorchGraph:
    """Load the weights of graph `name`."""
    return TorchGraph(info, name)


def open_decoder(info: StageInfo) -> TorchDecoder:
    """Load the decoder's weights."""
    return TorchDecoder(info)


class TorchGraph:
    """One graph, run eagerly."""

    def __init__(self, info: StageInfo, name: str) -> None:
        torch.set_num_threads(threads())
        weights = load_file(info.folder / "model.safetensors")
        config = read_config(info.folder / "config.yaml", info.folder / "config_bert.json")
        config = config.at_image_size(info.sizes["image_size"])
        network = MPlug(config, parts=tuple({key.split(".")[0] for key in weights})).eval()
        network.load_state_dict(weights)
        graphs = {spec.name: (spec, graph) for spec, graph in graphs_of(network, info.sizes["end_id"])}
        self._spec, self._graph = graphs[name]

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._graph(*(torch.from_numpy(np.asarray(inputs[name])) for name in self._spec.input_names))
        return {name: tensor.numpy() for name, tensor in zip(self._spec.output_names, outputs, strict=True)}


class TorchDecoder(HostDecoder):
    """The decoder's two graphs over caches that torch and numpy share."""

    def __init__(self, info: StageInfo) -> None:
        sizes = info.sizes
        super().__init__(
            layers=sizes["layers"],
            heads=sizes["heads"],
            head_width=sizes["head_width"],
            cache_dtype=np.dtype(np.float32),
        )
        self._prefill_graph = TorchGraph(info, "text_decoder_prefill")
        self._step_graph = TorchGraph(info, "text_decoder_step")
        self._caches: list[np.ndarray] = []

    def _bind(self, past: list[np.ndarray], cross: list[np.ndarray]) -> None:
        self._caches = [*past, *cross]

    def _prefill(self, encoder_states: np.ndarray) -> list[np.ndarray]:
        return list(self._prefill_graph({"ENCODER_STATES": encoder_states}).values())

    def _run_step(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        slots = inputs["TOKENS"].shape[0]
        names = self._step_graph._spec.input_names[len(inputs) :]
        caches = {name: cache[:slots] for name, cache in zip(names, self._caches, strict=True)}
        next_tokens, log_probabilities, written = self._step_graph({**inputs, **caches}).values()
        return next_tokens, log_probabilities, written
