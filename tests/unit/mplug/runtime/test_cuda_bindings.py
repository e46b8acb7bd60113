"""What is handed to NVIDIA's own Python bindings, without a GPU: a fake of our own would take anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from shutil import which

import numpy as np
import pytest

from mplug.runtime.gpu.cuda import COPY_ROWS, Device, DeviceError, device_count

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
HERE = Path(__file__).parent


@pytest.fixture
def device() -> Device:
    """A device without a driver: every call goes as far as the bindings, which convert its arguments."""
    if device_count():
        pytest.skip("there is a GPU here: tests/gpu")
    made = Device.__new__(Device)
    made._runtime, made.index, made._copy_rows, made._pinned = runtime, 0, None, []
    made._stream = runtime.cudaStream_t(0)
    made._select = lambda: None
    return made


HOST = np.zeros(64, np.uint8)
CALLS = {
    "cudaMalloc": lambda device: device.allocate(512),
    "cudaHostAlloc": lambda device: device.pinned(64),
    "cudaMemsetAsync": lambda device: device.zero(1 << 20, 512),
    "cudaMemcpyAsync up": lambda device: device.upload(1 << 20, HOST),
    "cudaMemcpyAsync down": lambda device: device.download(HOST, 1 << 20),
    "cudaMemcpyAsync within": lambda device: device.copy(1 << 20, 1 << 21, 64),
    "cudaStreamSynchronize": lambda device: device.synchronize(),
    "cudaStreamBeginCapture": lambda device: device.record(lambda: None),
    "cudaStreamEndCapture": lambda device: device.check("cudaStreamEndCapture", device.stream),
    "cudaStreamCreateWithFlags": lambda device: device.check(
        "cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking
    ),
    "cudaGraphInstantiate": lambda device: device.check("cudaGraphInstantiate", runtime.cudaGraph_t(0), 0),
    "cudaGraphLaunch": lambda device: device.check("cudaGraphLaunch", runtime.cudaGraphExec_t(0), device.stream),
    "cudaFree": lambda device: device.check("cudaFree", 1 << 20),
    "cudaFreeHost": lambda device: device.check("cudaFreeHost", HOST.ctypes.data),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_is_one_that_the_bindings_take(device: Device, call: str) -> None:
    """A wrong type or number of arguments would be a TypeError; what comes is CUDA's own answer."""
    with pytest.raises(DeviceError, match=rf"^{call.split()[0]}: cudaErrorInsufficientDriver \(35\)$"):
        CALLS[call](device)


@pytest.mark.skipif(which("c++") is None, reason="no C++ compiler for a driver on the host")
def test_a_launch_reaches_the_driver_with_the_kernels_arguments(tmp_path: Path) -> None:
    """The bindings pack them; a driver of ours unpacks them and runs the kernel's source on the host."""
    (tmp_path / "copy_rows.cu").write_text(COPY_ROWS)
    library = tmp_path / "libcuda.so.1"
    command = ["c++", "-O1", "-shared", "-fPIC", "-I", tmp_path, "-o", library, HERE / "libcuda.cpp"]
    subprocess.run(command, check=True, capture_output=True)
    packages = os.pathsep.join([str(HERE.parents[3]), os.environ.get("PYTHONPATH", "")])
    paths = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": packages}
    script = [sys.executable, HERE / "launch_through_bindings.py"]
    done = subprocess.run(script, env=os.environ | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
