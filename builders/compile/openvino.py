"""ONNX → OpenVINO IR, for CPUs."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import openvino

from mplug.runtime.openvino import PRECISIONS, best_precision, supported

#: The vision encoder's table of normalised pixels, by its name in the graph: not weights, and never rounded to 8 bits.
PIXEL_TABLE = "levels"


def resolve_precision(precision: str) -> str:
    """Return what `auto` means on this machine. Raises ValueError for a precision that cannot be checked here."""
    if precision == "auto":
        return best_precision()
    if precision not in PRECISIONS:
        raise ValueError(f"OpenVINO stages are built in {', '.join(PRECISIONS)}, not {precision}")
    if precision == "int8" and find_spec("nncf") is None:
        raise ValueError(
            "--precision int8 needs the package nncf: pip install 'mplug-triton[train]', or -r requirements.txt in a "
            "checkout"
        )
    if not supported(precision):
        raise ValueError(f"this CPU does not support {precision}; build with --precision fp32")
    return precision


def compile_graph(onnx: Path, folder: Path, precision: str) -> None:
    """Write `<name>.xml` and `.bin` of an ONNX file into `folder`.

    Weights are stored in half precision unless fp32 is asked for, or as int8 with a scale per row, which
    halves the bytes that a decoding step of few sequences waits for. The precision that is computed in
    is chosen when the stage is opened.
    """
    model = openvino.convert_model(onnx)
    if precision == "int8":
        import nncf  # here, because importing it takes seconds

        nncf.set_log_level(logging.ERROR)
        tables = [
            node.get_friendly_name()
            for node in model.get_ops()
            if any(source.get_node().get_friendly_name() == PIXEL_TABLE for source in node.input_values())
        ]
        kept = nncf.IgnoredScope(names=tables) if tables else None
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=kept)
    openvino.save_model(model, folder / f"{onnx.stem}.xml", compress_to_fp16=precision != "fp32")
