"""Stages of `--target torch`: their weights as they are, and what precision means there."""

from __future__ import annotations

from pathlib import Path

import torch

from builders.compile.compare import compare_decoders, compare_graph
from mplug.contract import GraphSpec
from mplug.network import MPlug
from mplug.runtime.interface import StageInfo
from mplug.runtime.torch import open_decoder, open_graph
from mplug.runtime.torch_device import TYPES


def resolve_precision(precision: str) -> str:
    """Return what `auto` means: fp16 where PyTorch has a GPU, else fp32. Raises ValueError for int8."""
    if precision == "auto":
        return "fp16" if torch.cuda.is_available() else "fp32"
    if precision not in TYPES:
        raise ValueError(f"PyTorch stages are built in {', '.join(TYPES)}, not {precision}")
    return precision


def compare(folder: Path, spec: GraphSpec, graph: torch.nn.Module, network: MPlug, end_id: int) -> dict[str, float]:
    """Return the relative error per output of a stage whose weights were written into `folder`.

    It computes in its precision also where there is no GPU, although a CPU serves it in fp32.
    """
    info = StageInfo.read(folder)
    dtype = TYPES[info.precision]
    if spec.name.endswith("prefill"):
        return {}  # compared with the step, through which alone it acts
    if spec.name.endswith("step"):
        return compare_decoders(open_decoder(info, dtype=dtype), network, end_id)
    return compare_graph(open_graph(info, spec.name, dtype=dtype), spec, graph, network)
