"""Which GPU a built stage runs on, as its files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mplug.runtime.interface import GPU_TARGETS, STAGE_FILE


def gpu_of(model: Path, version: str, *, torch_on_gpu: bool) -> int | None:
    """Return the number of the GPU that a model of a repository runs on; None for the CPU, and for a public model.

    `torch_on_gpu`: whether PyTorch's stages find a GPU here. With several GPUs in its instance group, the first.
    """
    path = model / version / STAGE_FILE
    if not path.exists():
        return None
    target = json.loads(path.read_text())["target"]
    if target not in GPU_TARGETS and not (target == "torch" and torch_on_gpu):
        return None
    listed = re.search(r"\bgpus\s*:\s*\[\s*(\d+)", (model / "config.pbtxt").read_text())
    return int(listed[1]) if listed else 0
