"""Several processes as torchrun starts them: one per GPU (NCCL), or on the CPU (gloo)."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together; 1 where torchrun started none."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; process 0 alone writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def process_group(device: str = "auto") -> Iterator[torch.device]:
    """Join the other processes, if torchrun started this one; yields the device of this process.

    `device`: `cpu`, `cuda`, or `auto` for a GPU where there is one.
    Raises ValueError where `cuda` is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(own)
    if "WORLD_SIZE" not in os.environ:
        yield own
        return
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield own
        distributed.barrier()  # nobody leaves while another still talks
    finally:
        # What holds the group beyond this (DDP, in a cycle) lets gloo's threads meet the end of the interpreter, still
        # holding tensors: asking for its lock then, they abort the process (pytorch/pytorch issue 190489).
        gc.collect()
        distributed.destroy_process_group()


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Tensors `[B, …]` of all processes, one behind the other by rank, `[world · B, …]`; without gradient."""
    if world_size() == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes."""
    return gather(value[None]).mean(0)


@torch.no_grad()
def rows_of_all(parts: Sequence[Tensor]) -> Tensor | None:
    """Return the rows of the parts `[n, …]` of all processes, one behind the other by rank; None where there are none.

    Every process calls it, also one that has no part.
    """
    found = [rows for rows in of_all(torch.cat(list(parts)).cpu() if parts else None) if rows is not None]
    return torch.cat(found) if found else None


def of_all(value: T) -> list[T]:
    """Return what every process passed, by rank; for small things alone."""
    if world_size() == 1:
        return [value]
    everyone: list[T | None] = [None] * world_size()
    distributed.all_gather_object(everyone, value)
    return everyone
