"""A CUDA device for runtimes that hold their own memory: buffers, copies, recorded graphs, one small kernel.

A thin layer over NVIDIA's `cuda-python`; imports neither torch nor TensorRT. All work goes to one stream of
the device, so it runs in the order in which it was asked for; `synchronize` waits for it.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from mplug.runtime.interface import RuntimeUnavailable

#: TensorRT wants addresses that are multiples of this, in bytes.
ALIGNMENT = 256
THREADS_PER_BLOCK = 256
MOST_BLOCKS = 65_535

#: Copies rows between two arrays of three dimensions, each row a run of 16-byte words. Row (i, j, k) lies at
#: i·s0 + j·s1 + k·s2 words; in the target also p[j]·shift words further, where p is given. One thread per word.
COPY_ROWS = r"""
struct __align__(16) Word { unsigned int part[4]; };

extern "C" __global__ void copy_rows(
    Word* to, const Word* from, const int* positions, long long shift,
    long long rows0, long long rows1, long long rows2, long long words,
    long long to0, long long to1, long long to2, long long from0, long long from1, long long from2)
{
    const long long total = rows0 * rows1 * rows2 * words;
    for (long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x; index < total;
         index += gridDim.x * (long long)blockDim.x) {
        const long long word = index % words;
        const long long k = index / words % rows2;
        const long long j = index / words / rows2 % rows1;
        const long long i = index / words / rows2 / rows1;
        const long long moved = positions ? positions[j] * shift : 0;
        to[i * to0 + j * to1 + k * to2 + moved + word] = from[i * from0 + j * from1 + k * from2 + word];
    }
}
"""
WORD_BYTES = 16


class DeviceError(RuntimeError):
    """A call to CUDA failed; the message names the call and CUDA's error."""


class DeviceLost(DeviceError):
    """An error after which every later call of this process fails, too: the process has to be started again."""


#: Such errors, from the descriptions in <driver_types.h> ("leaves the process in an inconsistent state").
LOST_DEVICE_CODES = frozenset(
    {
        214,  # cudaErrorECCUncorrectable
        220,  # cudaErrorNvlinkUncorrectable
        226,  # cudaErrorContained
        700,  # cudaErrorIllegalAddress
        702,  # cudaErrorLaunchTimeout
        710,  # cudaErrorAssert
        714,  # cudaErrorHardwareStackError
        715,  # cudaErrorIllegalInstruction
        716,  # cudaErrorMisalignedAddress
        717,  # cudaErrorInvalidAddressSpace
        718,  # cudaErrorInvalidPc
        719,  # cudaErrorLaunchFailure
        721,  # cudaErrorTensorMemoryLeak
    }
)


def raise_if_lost(error: BaseException) -> None:
    """Raise DeviceLost if an error says that the device is lost, whoever found that out.

    PyTorch's AcceleratorError carries CUDA's code as `error_code`.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DeviceLost):
            raise seen
        if getattr(seen, "error_code", None) in LOST_DEVICE_CODES:
            raise DeviceLost(str(seen).partition("\n")[0]) from error
        seen = seen.__cause__ or seen.__context__


#: The device that CUDA has selected, by thread: it is a setting of each thread's own.
_selected = threading.local()


class Buffer:
    """Memory of the device; freed with the object, or by `free`."""

    def __init__(self, device: Device, size: int) -> None:
        self._device = device
        self.size = size
        self.address = int(device.check("cudaMalloc", max(size, ALIGNMENT)))

    def free(self) -> None:
        """Give the memory back, after all work that may use it."""
        if self.address:
            address, self.address = self.address, 0
            self._device.check("cudaFree", address)

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            try:
                self.free()
            except Exception:  # at interpreter exit CUDA may have gone first, and its memory with it
                self.address = 0


class Graph:
    """Work that was recorded once, and is run again with one call."""

    def __init__(self, device: Device, executable: Any) -> None:
        self._device, self._executable = device, executable

    def launch(self) -> None:
        """Run it; reads and writes the addresses that it was recorded with."""
        self._device.check("cudaGraphLaunch", self._executable, self._device.stream)

    def free(self) -> None:
        """Drop it."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            self._device.check("cudaGraphExecDestroy", executable)


class Device:
    """One of the GPUs that this process sees (`CUDA_VISIBLE_DEVICES` says which those are), for all its threads."""

    def __init__(self, index: int = 0) -> None:
        """Open the device. Raises RuntimeUnavailable without `cuda-python`, a driver or a GPU of that number."""
        self._runtime, self._driver = _load("runtime"), _load("driver")
        count = self._runtime.cudaGetDeviceCount()
        if int(count[0]) != 0 or not count[1]:
            raise RuntimeUnavailable(f"no GPU can be used here: {_in_words(count[0])}")
        if index >= int(count[1]):
            raise RuntimeUnavailable(f"there is no GPU {index}: this process sees {count[1]}, counted from 0")
        self.index = index
        _selected.index = None
        self._stream = self.check("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        self._copy_rows: Any = None
        self._pinned: list[int] = []

    @property
    def stream(self) -> Any:
        """The stream, as `cuda-python` takes it."""
        return self._stream

    @property
    def stream_handle(self) -> int:
        """The stream, as TensorRT takes it."""
        return int(self._stream)

    def check(self, function: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; its result without the error code.

        Raises DeviceLost for an error of `LOST_DEVICE_CODES` and DeviceError for any other.
        """
        self._select()
        error, *results = getattr(self._runtime, function)(*arguments)
        _require_success(function, error)
        return results[0] if len(results) == 1 else None

    def _select(self) -> None:
        if getattr(_selected, "index", None) != self.index:
            _require_success("cudaSetDevice", *self._runtime.cudaSetDevice(self.index))
            _selected.index = self.index

    def raise_if_lost(self) -> None:
        """Raise DeviceLost if an earlier call has left the device useless; any other error is forgotten."""
        (error,) = self._runtime.cudaGetLastError()
        if int(error) in LOST_DEVICE_CODES:
            raise DeviceLost(f"cudaGetLastError: {_in_words(error)}")

    def allocate(self, size: int) -> Buffer:
        """Allocate `size` bytes of zeros."""
        buffer = Buffer(self, size)
        self.check("cudaMemsetAsync", buffer.address, 0, max(size, ALIGNMENT), self._stream)
        return buffer

    def pinned(self, size: int) -> np.ndarray:
        """Allocate `size` bytes of the host that the device can read and write, as long as this object lives."""
        address = int(self.check("cudaHostAlloc", max(size, 1), self._runtime.cudaHostAllocDefault))
        self._pinned.append(address)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (max(size, 1),))

    def free_pinned(self, array: np.ndarray) -> None:
        """Give back what `pinned` gave, after all work that may use it."""
        address = array.ctypes.data
        self._pinned.remove(address)
        self.check("cudaFreeHost", address)

    def zero(self, address: int, size: int) -> None:
        """Set memory of the device to zero."""
        if size:
            self.check("cudaMemsetAsync", address, 0, size, self._stream)

    def upload(self, target: int, source: np.ndarray) -> None:
        """Copy pinned host memory to the device. `source` must not change before the next `synchronize`."""
        self._copy(target, source.ctypes.data, source.nbytes, "cudaMemcpyHostToDevice")

    def download(self, target: np.ndarray, source: int) -> None:
        """Copy from the device to pinned host memory, which may be read after the next `synchronize`."""
        self._copy(target.ctypes.data, source, target.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy within the device."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        if size:
            kinds = self._runtime.cudaMemcpyKind
            self.check("cudaMemcpyAsync", target, source, size, getattr(kinds, kind), self._stream)

    def synchronize(self) -> None:
        """Wait for all work."""
        self.check("cudaStreamSynchronize", self._stream)

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what `work` asks of the stream, without running it.

        Raises whatever `work` raises; the stream is then as it was.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.check("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            # The stream must leave the capture, or nothing runs on it again; the error that counts is on its way.
            error, graph = self._runtime.cudaStreamEndCapture(self._stream)
            if int(error) == 0 and graph:
                self._runtime.cudaGraphDestroy(graph)
            self.raise_if_lost()
            raise
        graph = self.check("cudaStreamEndCapture", self._stream)
        try:
            return Graph(self, self.check("cudaGraphInstantiate", graph, 0))
        finally:
            self._runtime.cudaGraphDestroy(graph)

    def copy_rows(
        self,
        target: int,
        source: int,
        *,
        rows: tuple[int, int, int],
        row_bytes: int,
        target_strides: tuple[int, int, int],
        source_strides: tuple[int, int, int],
        positions: int = 0,
        position_bytes: int = 0,
    ) -> None:
        """Copy rows of `row_bytes` between two arrays; strides in bytes. See `COPY_ROWS`.

        `positions` is the address of int32 numbers on the device, one per index of the second dimension: the
        target's row lies that many times `position_bytes` further. All sizes are multiples of 16 bytes.
        """
        sizes = (position_bytes, row_bytes, *target_strides, *source_strides)
        if any(size % WORD_BYTES for size in (target, source, *sizes)):
            raise ValueError(f"addresses and sizes are not multiples of {WORD_BYTES}: {target}, {source}, {sizes}")
        self._select()
        if self._copy_rows is None:
            self._copy_rows = self._load_kernel("copy_rows", COPY_ROWS)
        shift, words, *strides = (size // WORD_BYTES for size in sizes)
        blocks = min(max(1, -(-rows[0] * rows[1] * rows[2] * words // THREADS_PER_BLOCK)), MOST_BLOCKS)
        values = (target, source, positions, shift, *rows, words, *strides)
        types = (ctypes.c_void_p,) * 3 + (ctypes.c_longlong,) * (len(values) - 3)
        (error,) = self._driver.cuLaunchKernel(
            self._copy_rows, blocks, 1, 1, THREADS_PER_BLOCK, 1, 1, 0, self._stream, (values, types), 0
        )
        _require_success("cuLaunchKernel", error)

    def _load_kernel(self, name: str, source: str) -> Any:
        """Compile a kernel for this GPU and load it."""
        attributes = self._runtime.cudaDeviceAttr
        major = self.check("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, self.index)
        minor = self.check("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, self.index)
        binary = compile_kernel(source, f"sm_{major}{minor}")
        error, module = self._driver.cuModuleLoadData(binary)
        _require_success(f"cuModuleLoadData of {name}", error)
        error, function = self._driver.cuModuleGetFunction(module, name.encode())
        _require_success(f"cuModuleGetFunction of {name}", error)
        return function


def _require_success(function: str, error: Any) -> None:
    """Raise DeviceLost or DeviceError for an error of the CUDA runtime or driver, whose numbers are the same."""
    if int(error) != 0:
        kind = DeviceLost if int(error) in LOST_DEVICE_CODES else DeviceError
        raise kind(f"{function}: {_in_words(error)}")


def _in_words(error: Any) -> str:
    """Return an error's name and number: formatted by itself, one of `cuda-python`'s is a bare number."""
    return f"{error.name} ({int(error)})" if hasattr(error, "name") else str(error)


def compile_kernel(source: str, architecture: str) -> bytes:
    """Compile CUDA C to machine code with NVRTC; needs no GPU. Raises DeviceError with the compiler's log."""
    nvrtc = _load("nvrtc")

    def check(function: str, *arguments: Any) -> Any:
        error, *results = getattr(nvrtc, function)(*arguments)
        if int(error) != 0:
            raise DeviceError(f"{function}: {_in_words(error)}")
        return results[0] if results else None

    program = check("nvrtcCreateProgram", source.encode(), b"kernel.cu", 0, [], [])
    try:
        check("nvrtcCompileProgram", program, 1, [f"--gpu-architecture={architecture}".encode()])
    except DeviceError as error:
        log = b" " * check("nvrtcGetProgramLogSize", program)
        check("nvrtcGetProgramLog", program, log)
        raise DeviceError(f"{error}: {log.decode(errors='replace').strip()}") from error
    binary = b" " * check("nvrtcGetCUBINSize", program)
    check("nvrtcGetCUBIN", program, binary)
    return binary


def device_count() -> int:
    """Return the number of GPUs that this process can use; 0 without `cuda-python` or a driver."""
    try:
        error, count = _load("runtime").cudaGetDeviceCount()
    except RuntimeUnavailable:
        return 0
    return int(count) if int(error) == 0 else 0


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        advice = "pip install -r requirements-gpu.txt"
        raise RuntimeUnavailable(f"the GPU path needs cuda-python: {advice} ({error})") from error
