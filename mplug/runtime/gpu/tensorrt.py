"""Run stages as TensorRT engines: on data-centre GPUs (`tensorrt`) and on RTX GPUs (`tensorrt-rtx`).

This file opens both kinds of stage and runs the encoders; the decoder is in `decoder.py`, engines and their
execution contexts in `engine.py`. Inputs may be numpy arrays or tensors that another model left on the GPU
(`__dlpack__`); those are copied from device to device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from mplug.contract import ENCODERS, FORWARDED_OUTPUTS
from mplug.runtime.gpu.array import DeviceArray, concatenated
from mplug.runtime.gpu.cuda import Buffer, Device
from mplug.runtime.gpu.decoder import TensorRTDecoder
from mplug.runtime.gpu.dlpack import Borrowed, borrow, on_gpu
from mplug.runtime.gpu.engine import Engine, TensorType
from mplug.runtime.interface import ANY_DEVICE, Decoder, StageInfo, gpu_index


def open_graph(info: StageInfo, name: str, device: str = ANY_DEVICE) -> TensorRTGraph:
    """Load the engine of an encoder onto a GPU, `cuda:N` or the first one."""
    return TensorRTGraph(Engine(Device(gpu_index(device)), info, name), stay=FORWARDED_OUTPUTS)


def open_decoder(info: StageInfo, device: str = ANY_DEVICE) -> Decoder:
    """Load the decoder's two engines onto a GPU, `cuda:N` or the first one."""
    gpu = Device(gpu_index(device))
    engines = (Engine(gpu, info, "text_decoder_prefill"), Engine(gpu, info, "text_decoder_step"))
    return TensorRTDecoder(gpu, *engines, info.sizes)


class TensorRTGraph:
    """An encoder. Calls must not overlap.

    Buffers are kept from call to call and grow when a larger batch comes; a batch that is larger than the
    engine's is run in parts.
    """

    def __init__(self, engine: Engine, stay: Sequence[str] = ()) -> None:
        """Return outputs named in `stay` as a `DeviceArray`, the others as numpy arrays."""
        self._engine, self._contexts = engine, {0: engine.context()}  # by profile
        self._context = self._contexts[0]
        self._stay = frozenset(stay)
        self._buffers: dict[str, Buffer] = {}
        self._staging: dict[str, np.ndarray] = {}
        self._largest_batch = min(engine.largest(tensor.name)[0] for tensor in engine.inputs)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray | DeviceArray]:
        if self._engine.name not in ENCODERS or any(on_gpu(value) for value in inputs.values()):
            return self._run(inputs)  # not a batch of requests: as large as it is
        batch = len(next(iter(inputs.values())))
        starts = range(0, batch, self._largest_batch)
        parts = [
            self._run({name: value[start : start + self._largest_batch] for name, value in inputs.items()})
            for start in starts
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: concatenated([part[name] for part in parts]) for name in parts[0]}

    def _run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray | DeviceArray]:
        device = self._engine.device
        self._choose_context({tensor.name: tuple(inputs[tensor.name].shape) for tensor in self._engine.inputs})
        for tensor in self._engine.inputs:
            value = inputs[tensor.name]
            if on_gpu(value):
                with borrow(value) as borrowed:
                    self._take(tensor, borrowed)
                    device.synchronize()
            else:
                self._upload(tensor, np.asarray(value, tensor.numpy))
        shapes = {tensor.name: self._context.shape(tensor.name) for tensor in self._engine.outputs}
        for tensor in self._engine.outputs:
            self._room(tensor, shapes[tensor.name])
        for tensor in self._engine.tensors.values():
            self._context.set_address(tensor.name, self._buffers[tensor.name].address)
        self._context.run()
        leaving = [tensor for tensor in self._engine.outputs if tensor.name not in self._stay]
        views = {tensor.name: self._view(tensor, shapes[tensor.name]) for tensor in leaving}
        for name, view in views.items():
            device.download(view, self._buffers[name].address)
        staying = {
            name: DeviceArray.copied(device, self._buffers[name].address, shapes[name], tensor.numpy)
            for name, tensor in self._engine.tensors.items()
            if name in self._stay and not tensor.is_input
        }
        device.synchronize()
        return {name: view.copy() for name, view in views.items()} | staying

    def _choose_context(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take the context of the profile for these inputs; without one, the first's, which says what is too large."""
        profile = self._engine.profile_of(shapes) or 0
        if profile not in self._contexts:
            self._contexts[profile] = self._engine.context(profile)
        self._context = self._contexts[profile]

    def _upload(self, tensor: TensorType, value: np.ndarray) -> None:
        self._context.set_shape(tensor.name, value.shape)
        self._room(tensor, value.shape)
        view = self._view(tensor, value.shape)
        view[...] = value
        self._engine.device.upload(self._buffers[tensor.name].address, view)

    def _take(self, tensor: TensorType, borrowed: Borrowed) -> None:
        if borrowed.dtype != tensor.numpy.name:
            raise ValueError(f"{tensor.name}: {borrowed.dtype} on the device instead of {tensor.numpy.name}")
        self._context.set_shape(tensor.name, borrowed.shape)
        self._room(tensor, borrowed.shape)
        self._engine.device.copy(self._buffers[tensor.name].address, borrowed.address, borrowed.size)

    def _room(self, tensor: TensorType, shape: tuple[int, ...]) -> None:
        size = prod(shape) * tensor.item_bytes
        held = self._buffers.get(tensor.name)
        if held is not None and held.size >= size:
            return
        device = self._engine.device
        device.synchronize()
        if held is not None:
            held.free()
            device.free_pinned(self._staging[tensor.name])
        self._buffers[tensor.name], self._staging[tensor.name] = device.allocate(size), device.pinned(size)

    def _view(self, tensor: TensorType, shape: tuple[int, ...]) -> np.ndarray:
        size = prod(shape) * tensor.item_bytes
        return self._staging[tensor.name][:size].view(tensor.numpy).reshape(shape)
