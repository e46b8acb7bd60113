"""ONNX → OpenVINO IR, for CPUs."""

from __future__ import annotations

from pathlib import Path

import openvino

from mplug.runtime.openvino import best_precision, supported

PRECISIONS = ("fp32", "bf16", "fp16")


def resolve_precision(precision: str) -> str:
    """What `auto` means on this machine; raises ValueError for a precision that cannot be checked here."""
    if precision == "auto":
        return best_precision()
    if precision not in PRECISIONS:
        raise ValueError(f"OpenVINO stages are built in {', '.join(PRECISIONS)}, not {precision}")
    if not supported(precision):
        raise ValueError(f"this CPU does not compute in {precision}; build with --precision fp32")
    return precision


def compile_graph(onnx: Path, folder: Path, precision: str) -> None:
    """Write `<name>.xml` and `.bin` of an ONNX file into `folder`.

    Weights are stored in half precision unless fp32 is asked for; the precision that is computed in is
    chosen when the stage is opened.
    """
    model = openvino.convert_model(onnx)
    openvino.save_model(model, folder / f"{onnx.stem}.xml", compress_to_fp16=precision != "fp32")
