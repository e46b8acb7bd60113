"""A GPU that is not there: CUDA and TensorRT as far as the runtime uses them, over memory of the host.

Stricter than the real thing where logic errors would hide: work waits in the stream until it is waited for,
a recorded graph replays the addresses that it was recorded with, every access is checked against what is
allocated, freed memory is filled with rubbish, and an engine's first run of a shape cannot be recorded.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mplug.contract import GraphSpec
from mplug.runtime.gpu.cuda import ALIGNMENT, COPY_ROWS

OK, INVALID = 0, 1
RUBBISH = 0x7F  # freed and fresh memory: as fp32 a huge number, and as fp16 no number


class Memory:
    """Pieces of host memory that play the device's, or page-locked, memory."""

    def __init__(self) -> None:
        self.pieces: dict[int, np.ndarray] = {}
        self._kept: list[np.ndarray] = []  # freed pieces, so that no address comes twice

    def allocate(self, size: int) -> int:
        raw = np.full(size + ALIGNMENT, RUBBISH, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        piece = raw[start : start + size]
        self.pieces[piece.ctypes.data] = piece
        return piece.ctypes.data

    def free(self, address: int) -> None:
        piece = self.pieces.pop(address)
        piece[:] = RUBBISH
        self._kept.append(piece)

    def view(self, address: int, size: int) -> np.ndarray:
        """`size` bytes; raises AssertionError unless they lie within one piece."""
        for start, piece in self.pieces.items():
            if start <= address and address + size <= start + len(piece):
                return piece[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    @property
    def held(self) -> int:
        return sum(len(piece) for piece in self.pieces.values())


class FakeCuda:
    """`cuda.bindings.runtime`, `.driver` and `.nvrtc` in one; functions answer as tuples, error first."""

    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76)

    def __init__(self) -> None:
        self.device, self.host = Memory(), Memory()
        self.stream: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.captured: dict[int, list[Callable[[], None]]] = {}
        self.launches = self.captures = self.recordings = self.kernels = 0
        self.uploaded = self.downloaded = 0  # bytes that crossed the bus
        self.fail_capture = False
        self.count, self.selected = 1, {}  # GPUs; the one that each thread has selected
        self.last_error = OK

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.stream if self.recording is None else self.recording).append(work)

    def cudaGetDeviceCount(self):
        return OK, self.count

    def cudaSetDevice(self, device):
        self.selected[threading.get_ident()] = device
        return (OK,)

    def cudaGetLastError(self):
        return (self.last_error,)

    def cudaDeviceGetAttribute(self, attribute, device):
        return OK, {75: 8, 76: 6}[attribute]

    def cudaStreamCreateWithFlags(self, flags):
        return OK, 1234

    def cudaStreamSynchronize(self, stream):
        assert self.recording is None, "nothing can be waited for while work is recorded"
        work, self.stream = self.stream, []
        for one in work:
            one()
        return (OK,)

    def cudaMalloc(self, size):
        assert self.recording is None, "memory is not allocated while work is recorded"
        return OK, self.device.allocate(size)

    def cudaFree(self, address):
        self.cudaStreamSynchronize(None)
        self.device.free(address)
        return (OK,)

    def cudaHostAlloc(self, size, flags):
        return OK, self.host.allocate(size)

    def cudaFreeHost(self, address):
        self.host.free(address)
        return (OK,)

    def cudaMemsetAsync(self, address, value, size, stream):
        self.enqueue(lambda: self.device.view(address, size).fill(value))
        return (OK,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        to, of = {1: (self.device, self.host), 2: (self.host, self.device), 3: (self.device, self.device)}[kind]
        if self.recording is None:
            self._count(kind, size)

        def copy() -> None:
            to.view(target, size)[:] = of.view(source, size)

        self.enqueue(copy)
        return (OK,)

    def _count(self, kind: int, size: int) -> None:
        self.uploaded += size * (kind == 1)
        self.downloaded += size * (kind == 2)

    def cudaStreamBeginCapture(self, stream, mode):
        assert self.recording is None
        self.recording = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        if self.fail_capture:
            return INVALID, None
        self.captures += 1
        self.captured[self.captures] = recorded
        return OK, self.captures

    def cudaGraphInstantiate(self, graph, flags):
        self.recordings += 1
        self.graphs[self.recordings] = self.captured[graph]
        return OK, self.recordings

    def cudaGraphDestroy(self, graph):
        del self.captured[graph]
        return (OK,)

    def cudaGraphExecDestroy(self, executable):
        del self.graphs[executable]
        return (OK,)

    def cudaGraphLaunch(self, executable, stream):
        self.launches += 1
        self.stream.extend(self.graphs[executable])
        return (OK,)

    # The driver and the compiler: one kernel, in numpy

    def nvrtcCreateProgram(self, source, name, headers, header_sources, header_names):
        assert b"copy_rows" in source
        return OK, source

    def nvrtcCompileProgram(self, program, count, options):
        assert options == [b"--gpu-architecture=sm_86"]
        return (OK,)

    def nvrtcGetCUBINSize(self, program):
        return OK, len(program)

    def nvrtcGetCUBIN(self, program, cubin):
        return (OK,)

    def cuModuleLoadData(self, image):
        return OK, image

    def cuModuleGetFunction(self, module, name):
        assert name == b"copy_rows"
        return OK, name

    def cuLaunchKernel(self, function, x, y, z, threads, ty, tz, shared, stream, parameters, extra):
        values, types = parameters
        assert len(values) == len(types) == 14 and 1 <= x <= 65_535 and (y, z, threads) == (1, 1, 256)
        self.kernels += 1
        self.enqueue(lambda: copy_rows(self.device, *values))
        return (OK,)


def copy_rows(memory: Memory, to: int, source: int, positions: int, shift: int, *numbers: int) -> None:
    """The kernel's meaning, row by row; every row must lie in allocated memory."""
    rows, words, to_strides, from_strides = numbers[:3], numbers[3], numbers[4:7], numbers[7:10]
    moved = memory.view(positions, 4 * rows[1]).view(np.int32) if positions else np.zeros(rows[1], np.int32)
    for i, j, k in np.ndindex(*rows):
        target = to + 16 * (i * to_strides[0] + j * to_strides[1] + k * to_strides[2] + int(moved[j]) * shift)
        origin = source + 16 * (i * from_strides[0] + j * from_strides[1] + k * from_strides[2])
        memory.view(target, 16 * words)[:] = memory.view(origin, 16 * words)


def compiled_copy_rows(folder: Path) -> Callable[..., None]:
    """The kernel's own source, compiled for the host: all threads of all blocks, one after the other."""
    source = folder / "kernel.cpp"
    source.write_text(
        "#define __global__\n#define __align__(bytes) alignas(bytes)\n"
        "struct Index { unsigned x; };\nstatic Index blockIdx, blockDim, threadIdx, gridDim;\n"
        f"{COPY_ROWS}\n"
        'extern "C" void run(int blocks, int threads, Word* to, const Word* from, const int* positions,\n'
        "                    const long long* n) {\n"
        "  gridDim.x = blocks; blockDim.x = threads;\n"
        "  for (blockIdx.x = 0; blockIdx.x < (unsigned)blocks; ++blockIdx.x)\n"
        "    for (threadIdx.x = 0; threadIdx.x < (unsigned)threads; ++threadIdx.x)\n"
        "      copy_rows(to, from, positions, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10]);\n}\n"
    )
    library = folder / "kernel.so"
    subprocess.run(["c++", "-O1", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    run = ctypes.CDLL(str(library)).run

    def launch(blocks: int, threads: int, to: int, source: int, positions: int, *numbers: int) -> None:
        run(
            blocks,
            threads,
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_void_p(positions),
            (ctypes.c_longlong * 11)(*numbers),
        )

    return launch


class FakeDataType(SimpleNamespace):
    """`tensorrt.DataType`."""


#: Largest lengths of an engine's second profile, where they are not those of the first.
FEW = {"S": 2, "T": 64, "A": 640}
#: Of the third, for single requests of the usual length.
ONE = {"S": 1, "B": 1}
TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "UINT8": np.uint8}


class FakeTensorRT:
    """The package `tensorrt`; an engine's file holds its graph's name."""

    __version__ = "0.fake"
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")

    def __init__(
        self,
        cuda: FakeCuda,
        graphs: dict[str, tuple[GraphSpec, torch.nn.Module]],
        most: dict[str, int],
        sizes: dict[str, int],
        caches: str = "FLOAT",
    ) -> None:
        """`most` and `sizes`: largest lengths of dynamic axes and lengths of the others, by letter."""
        self.cuda, self.graphs, self.most, self.sizes, self.caches = cuda, graphs, most, sizes, caches
        self.contexts = 0
        self.profiles: list[int] = []  # in which engines ran
        self.refuses_capture = self.refuses = False

    class Logger:
        WARNING = 2

        def __init__(self, severity) -> None:
            pass

    def Runtime(self, logger):
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize, engine_host_code_allowed=False)

    def _deserialize(self, plan: bytes):
        name = plan.decode()
        return FakeEngine(self, *self.graphs[name]) if name in self.graphs else None


class FakeEngine:
    """`tensorrt.ICudaEngine` over a PyTorch module."""

    device_memory_size_v2 = 512
    num_optimization_profiles = 3

    def __init__(self, trt: FakeTensorRT, spec: GraphSpec, module: torch.nn.Module) -> None:
        self.trt, self.spec, self.module = trt, spec, module
        self.tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.spec.input_names else "output"

    def type_of(self, name: str) -> str:
        if name.startswith(("PAST_", "CROSS_", "WRITTEN")):
            return self.trt.caches
        return {"FP32": "FLOAT"}.get(self.tensors[name].dtype, self.tensors[name].dtype)

    def get_tensor_dtype(self, name: str) -> FakeDataType:
        return FakeDataType(name=self.type_of(name))

    def get_tensor_profile_shape(self, name: str, profile: int):
        lengths = self.trt.sizes | self.trt.most
        lengths |= ({}, FEW, ONE)[profile]
        most = tuple(axis if isinstance(axis, int) else lengths[axis] for axis in self.tensors[name].axes)
        least = tuple(
            1 if isinstance(axis, str) and axis in self.trt.most else length
            for axis, length in zip(self.tensors[name].axes, most, strict=True)
        )
        return least, most, most

    def create_execution_context(self, strategy):
        assert strategy == "user"
        self.trt.contexts += 1
        return FakeContext(self)


class FakeContext:
    """`tensorrt.IExecutionContext`."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.cuda = engine, engine.trt.cuda
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.has_run: set[tuple] = set()
        self.scratch = self.profile = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.scratch = address

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert not self.shapes
        self.profile = profile
        return profile < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        most = self.engine.get_tensor_profile_shape(name, self.profile)[2]
        if len(shape) != len(most) or any(length > limit for length, limit in zip(shape, most, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        lengths = dict(self.engine.trt.sizes)
        for tensor in self.engine.spec.inputs:
            for axis, length in zip(tensor.axes, self.shapes[tensor.name], strict=True):
                if not isinstance(axis, int):
                    assert lengths.setdefault(axis, length) == length or axis in "NA", f"{tensor.name}: {axis}"
                    lengths[axis] = length
        return tuple(axis if isinstance(axis, int) else lengths[axis] for axis in self.engine.tensors[name].axes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % ALIGNMENT == 0

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 1234 and self.scratch in self.cuda.device.pieces
        if self.engine.trt.refuses or (self.engine.trt.refuses_capture and self.cuda.recording is not None):
            return False
        self.engine.trt.profiles.append(self.profile)
        key = tuple(sorted(self.shapes.items()))
        assert self.cuda.recording is None or key in self.has_run, "the first run of a shape cannot be recorded"
        self.has_run.add(key)
        addresses = dict(self.addresses)
        shapes = {name: self.get_tensor_shape(name) for name in self.engine.tensors}
        self.cuda.enqueue(lambda: self._run(addresses, shapes))
        return True

    @torch.inference_mode()
    def _run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        def view(name: str) -> np.ndarray:
            kind = np.dtype(TYPES[self.engine.type_of(name)])
            memory = self.cuda.device.view(addresses[name], prod(shapes[name]) * kind.itemsize)
            return memory.view(kind).reshape(shapes[name])

        inputs = [view(name) for name in self.engine.spec.input_names]
        wide = [array.astype(np.float32) if array.dtype == np.float16 else array for array in inputs]
        answers: tuple[Any, ...] = self.engine.module(*map(torch.from_numpy, wide))
        for name, answer in zip(self.engine.spec.output_names, answers, strict=True):
            view(name)[...] = answer.numpy()
