"""Devices and precisions of the PyTorch runtime."""

from __future__ import annotations

import torch

from mplug.runtime.interface import RuntimeUnavailable, gpu_index

#: What stages are computed in on a GPU, by precision.
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def torch_device(device: str) -> torch.device:
    """Return the device that `auto` (a GPU if PyTorch has one), `cpu` or `cuda:N` means here.

    Raises RuntimeUnavailable if it is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not count):
        return torch.device("cpu")
    index = gpu_index(device)
    if index >= count:
        raise RuntimeUnavailable(f"{device}: PyTorch {torch.__version__} sees {count} GPUs here")
    return torch.device("cuda", index)


def sum_in_fp32() -> None:
    """Let a GPU sum half-precision products in fp32 from end to end, and compute fp32 as fp32."""
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
