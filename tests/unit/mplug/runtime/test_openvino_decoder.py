"""The decoder's graphs on OpenVINO: what is refused when they are opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13

from mplug.runtime.interface import RuntimeUnavailable, StageInfo
from mplug.runtime.openvino import open_decoder


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
