"""Launch the kernel through NVIDIA's Python bindings, with libcuda.cpp in the driver's place; 1 if rows went wrong."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
from cuda.bindings import driver, runtime

from mplug.runtime.gpu import cuda
from mplug.runtime.gpu.cuda import Device

STREAM = 0x77  # libcuda.cpp refuses any other


def device() -> Device:
    """A device whose memory is the host's: the CUDA runtime, which needs a real driver, is left out."""
    made = Device.__new__(Device)
    made._runtime = SimpleNamespace(
        cudaSetDevice=lambda index: (0,),
        cudaDeviceGetAttribute=lambda attribute, index: (0, 9),
        cudaDeviceAttr=runtime.cudaDeviceAttr,
    )
    made._driver, made.index, made._copy_rows = driver, 0, None
    made._stream = runtime.cudaStream_t(STREAM)
    return made


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros at an address that is a multiple of 16."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 16, np.uint8)
    start = -memory.ctypes.data % 16
    return memory[start : start + size].view(dtype).reshape(shape)


def main() -> int:
    """As the decoder's step writes keys: `[2, S, H, M·D]` to columns of `[2, S, H, T, C·D]`; then a plain copy back."""
    cuda.compile_kernel = lambda source, architecture: b"\x7fELF of " + architecture.encode()  # NVRTC is not here
    gpu, random = device(), np.random.default_rng(0)
    arrays, slots, heads, beams, positions, columns, width = 2, 3, 4, 2, 8, 5, 64
    written = aligned((arrays, slots, heads, beams * width), np.float16)
    cache = aligned((arrays, slots, heads, positions, columns * width), np.float16)
    at = aligned((4,), np.int32)
    written[...], at[:3] = random.standard_normal(written.shape), (0, 7, 3)
    row = width * 2
    gpu.copy_rows(
        cache.ctypes.data,
        written.ctypes.data,
        rows=(arrays, slots, heads),
        row_bytes=beams * row,
        target_strides=tuple(n * positions * columns * row for n in (slots * heads, heads, 1)),
        source_strides=tuple(n * beams * row for n in (slots * heads, heads, 1)),
        positions=at.ctypes.data,
        position_bytes=columns * row,
    )
    expected = np.zeros_like(cache)
    for slot in range(slots):
        expected[:, slot, :, at[slot], : beams * width] = written[:, slot]
    copied = aligned(cache.shape, np.float16)
    gpu.copy_rows(
        copied.ctypes.data,
        cache.ctypes.data,
        rows=(1, 1, 1),
        row_bytes=cache.nbytes,
        target_strides=(0, 0, 0),
        source_strides=(0, 0, 0),
    )
    return int(not (np.array_equal(cache, expected) and np.array_equal(copied, expected) and written.any()))


if __name__ == "__main__":
    sys.exit(main())
