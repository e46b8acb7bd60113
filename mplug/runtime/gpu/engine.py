"""TensorRT engines: loaded from a plan, and run through execution contexts on one stream."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mplug.runtime.gpu.cuda import Device, device_count
from mplug.runtime.interface import RuntimeUnavailable, StageInfo, check_inputs

#: Target → the Python package that compiles and loads its engines.
PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: Element types as TensorRT calls them.
ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT32": 4, "INT64": 8, "UINT8": 1, "BOOL": 1}


class EngineRefused(RuntimeError):
    """TensorRT does not run an engine as it was asked to; its log says why."""


def can_run(target: str) -> bool:
    """Return whether engines of a target can be loaded here: its package is installed, and there is a GPU."""
    try:
        importlib.import_module(PACKAGES[target])
    except ImportError:
        return False
    return device_count() > 0


@dataclass(frozen=True)
class TensorType:
    """Of an engine's input or output."""

    name: str
    is_input: bool
    dtype: str  #: "FLOAT", "HALF", "BF16", "INT32" …, as TensorRT calls it
    item_bytes: int

    @property
    def numpy(self) -> np.dtype:
        """The same for numpy; raises RuntimeUnavailable for bf16, which only ever stays on the device."""
        types = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}
        if self.dtype not in types:
            raise RuntimeUnavailable(f"{self.name}: {self.dtype} cannot leave the device")
        return np.dtype(types[self.dtype])


class Engine:
    """A compiled graph in the memory of the device."""

    def __init__(self, device: Device, info: StageInfo, name: str) -> None:
        """Load the engine. Raises RuntimeUnavailable saying what to do if it cannot be loaded here."""
        self.device, self.name = device, name
        trt = _package(info.target)
        path = info.folder / f"{name}.{info.target}.plan"
        if not path.exists():
            raise RuntimeUnavailable(f"{path} is missing: this folder was not built with --target {info.target}")
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        if _about(path).get("version_compatible"):
            # Such an engine brings the code that runs it. It is our own file, as trusted as this one.
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            built = _about(path).get("version", "an unknown version")
            raise RuntimeUnavailable(
                f"{path} was built with TensorRT {built} and does not load with {trt.__version__} "
                "on this GPU: build it again here"
            )
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.tensors = {name: self._type(trt, name) for name in names}
        check_inputs(info, name, (tensor.name for tensor in self.inputs))
        # Contexts run one after the other, so they share their scratch memory.
        self._scratch = device.allocate(int(self._engine.device_memory_size_v2))

    def _type(self, trt: ModuleType, name: str) -> TensorType:
        dtype = self._engine.get_tensor_dtype(name)
        is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        return TensorType(name, is_input, dtype.name, ITEM_BYTES[dtype.name])

    @property
    def inputs(self) -> list[TensorType]:
        return [tensor for tensor in self.tensors.values() if tensor.is_input]

    @property
    def outputs(self) -> list[TensorType]:
        return [tensor for tensor in self.tensors.values() if not tensor.is_input]

    def largest(self, name: str) -> tuple[int, ...]:
        """Return the largest shape of an input that the engine's first profile was compiled for."""
        return tuple(self._engine.get_tensor_profile_shape(name, 0)[2])

    def profile_of(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Return the narrowest profile that holds these inputs, whose kernels were chosen for the like; or None."""
        found: dict[int, int] = {}
        for profile in range(self._engine.num_optimization_profiles):
            ranges = {name: self._engine.get_tensor_profile_shape(name, profile) for name in shapes}
            if all(
                low <= length <= high
                for name, shape in shapes.items()
                for low, length, high in zip(ranges[name][0], shape, ranges[name][2], strict=True)
            ):
                found[profile] = sum(prod(most) for _, _, most in ranges.values())
        return min(found, key=lambda profile: found[profile], default=None)

    def context(self, profile: int = 0) -> Context:
        """Create an execution context for runs of this engine within one of its profiles."""
        context = self._engine.create_execution_context(self._strategy)
        if context is None:
            raise RuntimeUnavailable(
                f"{self.name}: TensorRT could not create an execution context; the GPU's memory may be full"
            )
        context.set_device_memory(self._scratch.address, self._scratch.size)
        if not context.set_optimization_profile_async(profile, self.device.stream_handle):
            raise RuntimeUnavailable(f"{self.name}: TensorRT rejects its own profile {profile}")
        return Context(self, context)


class Context:
    """Shapes and addresses of one way to run an engine."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine, self._context = engine, context

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set an input's shape. Raises ValueError for one that the engine was not compiled for."""
        if not self._context.set_input_shape(name, tuple(shape)):
            raise ValueError(
                f"{self._engine.name}: {name} of shape {list(shape)} exceeds what the engine was "
                f"built for, at most {list(self._engine.largest(name))}"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, once those of all inputs are set."""
        return tuple(self._context.get_tensor_shape(name))

    def set_address(self, name: str, address: int) -> None:
        """Set where a tensor is, or is to be written."""
        if not self._context.set_tensor_address(name, address):
            raise ValueError(f"{self._engine.name}: TensorRT rejects address {address:#x} for {name}")

    def run(self) -> None:
        """Enqueue one run on the device's stream. Raises EngineRefused if TensorRT refuses, or DeviceLost."""
        device = self._engine.device
        if not self._context.execute_async_v3(device.stream_handle):
            device.raise_if_lost()  # TensorRT gives no reason, and every later run would be refused as well
            raise EngineRefused(f"{self._engine.name}: TensorRT refuses to run; its log says why")

    @property
    def recordable(self) -> bool:
        """Whether a run can be recorded now; TensorRT-RTX may still be compiling kernels for the shapes."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(self._engine.device.stream_handle))


def _package(target: str) -> ModuleType:
    try:
        return importlib.import_module(PACKAGES[target])
    except ImportError as error:
        raise RuntimeUnavailable(
            f"this repository was built for {target} and needs the package {PACKAGES[target]}: "
            f"pip install -r requirements-gpu.txt ({error})"
        ) from error


def _about(plan: Path) -> dict[str, Any]:
    """Read what the builder wrote beside an engine."""
    path = plan.with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else {}
