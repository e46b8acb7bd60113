"""Stages as OpenVINO IR, on a CPU."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
import openvino

from mplug.contract import GraphSpec, decoder_prefill, decoder_step
from mplug.runtime import huge_pages
from mplug.runtime.host_decoder import HostDecoder
from mplug.runtime.interface import ANY_DEVICE, RuntimeUnavailable, StageInfo, check_inputs, threads

#: Precision of a stage → OpenVINO's name of what is computed in; int8 weights are computed with in `auto`'s.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": ""}
#: Precision → the CPU's capability that it needs.
CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}
#: Limits the instructions of oneDNN, which computes the products; OpenVINO names the CPU's capabilities regardless.
ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
ISAS_WITHOUT_BYTES = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}
ISAS_WITHOUT_HALF = {*ISAS_WITHOUT_BYTES, "AVX2_VNNI", "AVX512_CORE_VNNI"}
#: Bytes of a graph's weights from which putting them on huge pages pays.
LARGE_WEIGHTS = 32 << 20
#: With int8 weights activations are rounded to int8 too, at most so many neighbours with one scale: the products
#: are those of integers. Fewer are slower, and a row of the matrix must be a multiple.
QUANTISED_TOGETHER = 128


def _isa_limit() -> str:
    return os.environ.get(ISA_LIMIT, "").upper()


def supported(precision: str) -> bool:
    """Return whether this machine's CPU computes in `precision`, as far as the environment lets oneDNN use it."""
    if precision in CAPABILITIES and _isa_limit() in ISAS_WITHOUT_HALF:
        return False
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return precision not in CAPABILITIES or CAPABILITIES[precision] in capabilities


def best_precision() -> str:
    """Return what `auto` means here: bf16 where the CPU has it, else fp32."""
    return "bf16" if supported("bf16") else "fp32"


def computed_in(precision: str) -> str:
    """Return the precision that a stage of `precision` computes in on this machine."""
    return best_precision() if precision == "int8" else precision


def open_graph(info: StageInfo, name: str, device: str = ANY_DEVICE) -> OpenVinoGraph:
    """Compile `name`.xml of a stage. Raises RuntimeUnavailable for a device that is not the CPU."""
    _require_cpu(device)
    return OpenVinoGraph(info, name)


def open_decoder(info: StageInfo, device: str = ANY_DEVICE) -> OpenVinoDecoder:
    """Compile the decoder's two graphs. Raises RuntimeUnavailable for a device that is not the CPU."""
    _require_cpu(device)
    return OpenVinoDecoder(info)


def _require_cpu(device: str) -> None:
    if device not in (ANY_DEVICE, "cpu"):
        raise RuntimeUnavailable(
            f"OpenVINO stages run on the CPU, not on {device}: build with --target torch or tensorrt for a GPU"
        )


def _compile(model: openvino.Model, info: StageInfo) -> openvino.CompiledModel:
    if not supported(info.precision):
        raise RuntimeUnavailable(
            f"{info.folder}: was built for {info.precision}, which this CPU does not support; "
            "build again with --precision fp32"
        )
    whole = info.precision == "int8" and _isa_limit() not in ISAS_WITHOUT_BYTES
    quantised = math.gcd(QUANTISED_TOGETHER, info.sizes["hidden_size"]) if whole else 0
    return openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": PRECISIONS[computed_in(info.precision)],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads(),
            # Pinned threads of stages that run at the same time would share cores and leave others idle.
            "ENABLE_CPU_PINNING": False,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": quantised,
        },
    )


class LargeWeights:
    """Puts a graph's weights on huge pages after its first run, for only then they lie where they are read."""

    def __init__(self, info: StageInfo, name: str) -> None:
        weights = info.folder / f"{name}.bin"
        self._pending = weights.exists() and weights.stat().st_size >= LARGE_WEIGHTS

    def after_run(self) -> None:
        """Do it in a thread of its own, once: half a second that no request waits for."""
        if self._pending:
            self._pending = False
            huge_pages.collapse_aside()


class OpenVinoGraph:
    """One compiled graph; calls must not overlap."""

    def __init__(self, info: StageInfo, name: str) -> None:
        self._weights = LargeWeights(info, name)
        model = openvino.Core().read_model(info.folder / f"{name}.xml")
        check_inputs(info, name, (tensor.any_name for tensor in model.inputs))
        self._request = _compile(model, info).create_infer_request()
        self._names = [output.any_name for output in self._request.model_outputs]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._request.infer(dict(inputs), share_inputs=True, share_outputs=False)
        self._weights.after_run()
        return {name: results[index] for index, name in enumerate(self._names)}


class OpenVinoDecoder(HostDecoder):
    """The decoder on a CPU; its caches are bf16 where the precision is, and read in place."""

    def __init__(self, info: StageInfo) -> None:
        sizes = info.sizes
        self._half = computed_in(info.precision) == "bf16"
        # numpy has no bf16: the cache's bits travel as uint16, and are only ever copied.
        super().__init__(
            layers=sizes["layers"],
            heads=sizes["heads"],
            head_width=sizes["head_width"],
            cache_dtype=np.dtype(np.uint16 if self._half else np.float32),
        )
        self._prefill_spec, self._step_spec = decoder_prefill(sizes["layers"]), decoder_step(sizes["layers"])
        self._prefill_request = self._open(info, self._prefill_spec)
        self._step_request = self._open(info, self._step_spec)
        self._step_weights = LargeWeights(info, self._step_spec.name)
        self._bound: list[tuple[str, np.ndarray]] = []
        self._bound_slots = 0

    def _open(self, info: StageInfo, spec: GraphSpec) -> openvino.InferRequest:
        model = openvino.Core().read_model(info.folder / f"{spec.name}.xml")
        check_inputs(info, spec.name, (tensor.any_name for tensor in model.inputs))
        if self._half:
            processor = openvino.preprocess.PrePostProcessor(model)
            for tensor in spec.inputs:
                if tensor.name.startswith(("PAST_", "CROSS_")):
                    processor.input(tensor.name).tensor().set_element_type(openvino.Type.bf16)
            for tensor in spec.outputs:
                if tensor.name.startswith("CROSS_") or tensor.name == "WRITTEN":
                    processor.output(tensor.name).tensor().set_element_type(openvino.Type.bf16)
            model = processor.build()
        return _compile(model, info).create_infer_request()

    def _tensor(self, array: np.ndarray) -> openvino.Tensor:
        """Return a view of a cache array, without a copy."""
        if self._half:
            return openvino.Tensor(array, openvino.Shape(array.shape), openvino.Type.bf16)
        return openvino.Tensor(array, shared_memory=True)

    def _bits(self, tensor: openvino.Tensor) -> np.ndarray:
        return tensor.data.view(np.uint16) if self._half else tensor.data

    def _bind(self, past: list[np.ndarray], cross: list[np.ndarray]) -> None:
        names = [tensor.name for tensor in self._step_spec.inputs if tensor.name.startswith(("PAST_", "CROSS_"))]
        self._bound = list(zip(names, [*past, *cross], strict=True))
        self._bound_slots = 0

    def _prefill(self, encoder_states: np.ndarray) -> list[np.ndarray]:
        self._prefill_request.infer({"ENCODER_STATES": encoder_states}, share_inputs=True)
        return [self._bits(self._prefill_request.get_tensor(name)) for name in self._prefill_spec.output_names]

    def _bind_search(self, inputs: dict[str, np.ndarray]) -> None:
        for name, array in inputs.items():
            self._step_request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def _run_step(self, slots: int) -> Mapping[str, np.ndarray]:
        if slots != self._bound_slots:
            for name, array in self._bound:
                self._step_request.set_tensor(name, self._tensor(array[:slots]))
            self._bound_slots = slots
        self._step_request.infer()
        self._step_weights.after_run()
        outputs = {name: self._step_request.get_tensor(name) for name in self._step_spec.output_names}
        written = self._bits(outputs.pop("WRITTEN"))
        return {name: tensor.data for name, tensor in outputs.items()} | {"WRITTEN": written}
