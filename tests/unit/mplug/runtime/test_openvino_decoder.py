"""Graphs on OpenVINO: what is refused when they are opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13

from mplug.runtime.interface import RuntimeUnavailable, StageInfo
from mplug.runtime.openvino import best_precision, open_decoder, open_graph, supported


@pytest.mark.parametrize(
    ("name", "open_it"),
    [
        ("text_decoder_prefill", open_decoder),
        ("vision_encoder", lambda info: open_graph(info, "vision_encoder")),
        ("text_decoder_score", lambda info: open_graph(info, "text_decoder_score")),
    ],
)
def test_graphs_of_another_version_are_refused_in_words(
    tmp_path: Path, name: str, open_it: Callable[[StageInfo], object]
) -> None:
    """Their inputs are not those of the contract."""
    parameter = opset13.parameter([1, 3], np.float32)
    parameter.output(0).set_names({"STATES"})
    openvino.save_model(openvino.Model([parameter + parameter], [parameter]), tmp_path / f"{name}.xml")
    sizes = {"layers": 1, "heads": 2, "head_width": 4, "hidden_size": 8}
    with pytest.raises(RuntimeUnavailable, match=rf"{name} was built by another version.*build the repository"):
        open_it(StageInfo(tmp_path, "openvino", "fp32", sizes, {}))


@pytest.mark.parametrize("isa", ["AVX2", "avx512_core_vnni"])
def test_auto_heeds_what_onednn_is_limited_to(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages in bf16 fail to compile under such a limit, though the CPU has it."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert best_precision() == "fp32" and supported("fp32") and supported("int8") and not supported("bf16")
