"""The decoder's graphs on OpenVINO: what is refused when they are opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13

from mplug.runtime.interface import RuntimeUnavailable, StageInfo
from mplug.runtime.openvino import best_precision, open_decoder, supported


def test_graphs_of_another_version_are_refused_in_words(tmp_path: Path) -> None:
    """Their inputs are not those of the contract."""
    parameter = opset13.parameter([1, 3], np.float32)
    parameter.output(0).set_names({"STATES"})
    openvino.save_model(openvino.Model([parameter + parameter], [parameter]), tmp_path / "text_decoder_prefill.xml")
    sizes = {"layers": 1, "heads": 2, "head_width": 4, "hidden_size": 8}
    with pytest.raises(
        RuntimeUnavailable, match=r"text_decoder_prefill was built by another version.*build the repository"
    ):
        open_decoder(StageInfo(tmp_path, "openvino", "fp32", sizes, {}))


@pytest.mark.parametrize("isa", ["AVX2", "avx512_core_vnni"])
def test_auto_heeds_what_onednn_is_limited_to(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages in bf16 fail to compile under such a limit, though the CPU has it."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert best_precision() == "fp32" and supported("fp32") and supported("int8") and not supported("bf16")
