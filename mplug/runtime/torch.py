"""The network's own PyTorch modules as a runtime: on any GPU that PyTorch knows, or on a CPU.

A stage's folder holds its parts of the weights (`model.safetensors`, fp32) and the checkpoint's two configuration
files. On a GPU it computes in the precision that it was built for, on a CPU in fp32. This is also the reference that
compiled stages are compared with: `torch_graphs` and `eager_decoder`, on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mplug.config import read_config
from mplug.contract import FORWARDED_OUTPUTS, GraphSpec
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.runtime.gpu.array import DeviceArray
from mplug.runtime.gpu.cuda import device_count
from mplug.runtime.gpu.dlpack import on_gpu
from mplug.runtime.graph_decoder import GraphDecoder
from mplug.runtime.interface import StageInfo, threads
from mplug.runtime.torch_decoder import TorchDecoder
from mplug.runtime.torch_device import TYPES, sum_in_fp32, torch_device


def open_graph(info: StageInfo, name: str, device: str = "auto", dtype: torch.dtype | None = None) -> TorchGraph:
    """Load the weights of graph `name` onto a device; see `open_decoder`."""
    place = torch_device(device)
    spec, module = _load(info, place, dtype)[name]
    # Another stage takes these from the GPU, through DLPack; that needs cuda-python, which PyTorch's CUDA build brings.
    stay = FORWARDED_OUTPUTS if place.type == "cuda" and device_count() else ()
    return TorchGraph(spec, module, place, stay=stay)


def open_decoder(info: StageInfo, device: str = "auto", dtype: torch.dtype | None = None) -> TorchDecoder:
    """Load the decoder's weights onto a device: `auto` (a GPU if PyTorch has one), `cpu` or `cuda:N`.

    It computes in `dtype`; by default in the precision that the stage was built for on a GPU, and in fp32 on a CPU.
    Raises RuntimeUnavailable where there is no such device.
    """
    place = torch_device(device)
    graphs = _load(info, place, dtype)
    prefill, step = graphs["text_decoder_prefill"][1], graphs["text_decoder_step"][1]
    return TorchDecoder(prefill, step, info.sizes, place)


def eager_decoder(network: MPlug, end_id: int) -> GraphDecoder:
    """Return the decoder of a network in memory; `end_id` is the id of `[SEP]`."""
    graphs, text = torch_graphs(network, end_id), network.config.text
    sizes = {"layers": text.text_decode_layers, "heads": text.heads, "head_width": text.head_width}
    return GraphDecoder(graphs["text_decoder_prefill"], graphs["text_decoder_step"], sizes)


def torch_graphs(network: MPlug, end_id: int) -> dict[str, TorchGraph]:
    """Return the graphs of a network by name; `end_id` is the id of `[SEP]`."""
    cpu = torch.device("cpu")
    return {spec.name: TorchGraph(spec, module, cpu) for spec, module in graphs_of(network, end_id)}


class TorchGraph:
    """One graph, run eagerly: numpy arrays, or tensors on the GPU, in; fp32 out, whatever it computes in."""

    def __init__(self, spec: GraphSpec, module: nn.Module, device: torch.device, stay: tuple[str, ...] = ()) -> None:
        """Return outputs named in `stay` as a `DeviceArray`, the others as numpy arrays."""
        self._spec, self._module, self._device, self._stay = spec, module, device, frozenset(stay)
        self._dtype = next(module.parameters()).dtype

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray | DeviceArray]:
        outputs = self._module(*(self._received(inputs[name]) for name in self._spec.input_names))
        return {name: self._given(name, tensor) for name, tensor in zip(self._spec.output_names, outputs, strict=True)}

    def _received(self, value: Any) -> Tensor:
        tensor = torch.from_dlpack(value.__dlpack__()) if on_gpu(value) else torch.from_numpy(np.asarray(value))
        return tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)

    def _given(self, name: str, tensor: Tensor) -> np.ndarray | DeviceArray:
        if tensor.is_floating_point():
            tensor = tensor.float()
        if name not in self._stay:
            return tensor.cpu().numpy()
        torch.cuda.current_stream(self._device).synchronize()  # what is handed on is complete
        return DeviceArray.received(tensor.contiguous())


def _load(info: StageInfo, device: torch.device, dtype: torch.dtype | None) -> dict[str, tuple[GraphSpec, nn.Module]]:
    """Read the graphs that a stage's folder has weights for."""
    sum_in_fp32()
    torch.set_num_threads(threads())
    weights = load_file(info.folder / "model.safetensors")
    config = read_config(info.folder / "config.yaml", info.folder / "config_bert.json")
    config = config.at_image_size(info.sizes["image_size"])
    network = MPlug(config, parts=tuple({key.split(".")[0] for key in weights})).eval()
    network.load_state_dict(weights)
    wanted = dtype or TYPES[info.precision if device.type == "cuda" else "fp32"]
    network.to(device, wanted)
    return {spec.name: (spec, module) for spec, module in graphs_of(network, info.sizes["end_id"])}
