"""The layer over CUDA on a real device: memory, the kernel, recorded graphs."""

from __future__ import annotations

import numpy as np
import pytest

from mplug.runtime.gpu.cuda import Device
from mplug.runtime.gpu.staging import StagedTensors


@pytest.fixture
def device():
    return Device()


def test_memory_goes_there_and_back(device):
    block = StagedTensors(device, {"A": ((3, 5), np.dtype(np.int32)), "B": ((7,), np.dtype(np.float32))})
    block.arrays["A"][...], block.arrays["B"][...] = np.arange(15).reshape(3, 5), np.arange(7)
    block.upload()
    device.synchronize()
    block.arrays["A"][...] = block.arrays["B"][...] = 0
    block.download()
    device.synchronize()
    np.testing.assert_array_equal(block.arrays["A"], np.arange(15).reshape(3, 5))
    np.testing.assert_array_equal(block.arrays["B"], np.arange(7))


def test_the_kernel_writes_rows_to_positions_that_lie_on_the_device(device):
    """As the decoder's step writes keys: `[2, S, H, M·D]` to columns of `[2, S, H, T, C·D]`."""
    arrays, slots, heads, beams, positions, columns, width = 2, 3, 4, 2, 8, 5, 64
    whole = StagedTensors(
        device,
        {
            "WRITTEN": ((arrays, slots, heads, beams * width), np.dtype(np.float16)),
            "CACHE": ((arrays, slots, heads, positions, columns * width), np.dtype(np.float16)),
            "POSITIONS": ((slots,), np.dtype(np.int32)),
        },
    )
    written = np.random.default_rng(0).standard_normal(whole.arrays["WRITTEN"].shape).astype(np.float16)
    at = np.array([0, 7, 3])
    whole.arrays["WRITTEN"][...], whole.arrays["CACHE"][...], whole.arrays["POSITIONS"][...] = written, 0, at
    whole.upload()
    row = width * 2
    device.copy_rows(
        whole.addresses["CACHE"],
        whole.addresses["WRITTEN"],
        rows=(arrays, slots, heads),
        row_bytes=beams * row,
        target_strides=tuple(n * positions * columns * row for n in (slots * heads, heads, 1)),
        source_strides=tuple(n * beams * row for n in (slots * heads, heads, 1)),
        positions=whole.addresses["POSITIONS"],
        position_bytes=columns * row,
    )
    whole.download()
    device.synchronize()
    expected = np.zeros((arrays, slots, heads, positions, columns * width), np.float16)
    for slot in range(slots):
        expected[:, slot, :, at[slot], : beams * width] = written[:, slot]
    np.testing.assert_array_equal(whole.arrays["CACHE"], expected)


def test_a_recording_reads_its_addresses_each_time(device):
    block = StagedTensors(device, {"A": ((64,), np.dtype(np.int32))})
    target = device.allocate(256)

    def work():
        block.upload()
        device.copy_rows(
            target.address,
            block.addresses["A"],
            rows=(1, 1, 1),
            row_bytes=256,
            target_strides=(0, 0, 0),
            source_strides=(0, 0, 0),
        )
        device.copy(block.addresses["A"], target.address, 256)
        block.download()

    work()  # loads the kernel, which cannot be recorded
    device.synchronize()
    graph = device.record(work)
    for value in (3, 4):
        block.arrays["A"][...] = value
        graph.launch()
        device.synchronize()
        assert (block.arrays["A"] == value).all()
    graph.free()
