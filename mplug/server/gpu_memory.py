"""tritonserver's options for the memory that it holds on GPUs and for them."""

from __future__ import annotations

from pathlib import Path

from mplug.runtime.gpu.placement import gpu_of

#: What the driver makes where there is a GPU.
DRIVER = Path("/dev/nvidiactl")
#: Memory of each GPU that Triton passes tensors between models in, bytes; 64 MB by default. A request's states, 1.85 MB
#: at base size (28 MB of a video), lie there until it is answered, and 288 requests may wait and decode.
CUDA_POOL_BYTES = 1 << 30


def gpu_arguments(repository: Path, driver: Path = DRIVER) -> list[str]:
    """Return the options: a pool on each GPU that a stage runs on; without a driver, nothing that asks for one."""
    if not driver.exists():
        return ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
    stages = (gpu_of(folder.parent, folder.name, torch_on_gpu=True) for folder in repository.glob("*/[0-9]*"))
    gpus = sorted({gpu for gpu in stages if gpu is not None})
    return [f"--cuda-memory-pool-byte-size={gpu}:{CUDA_POOL_BYTES}" for gpu in gpus]
