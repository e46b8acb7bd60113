"""ModelScope's model code on a CPU, at any size: what is imported of a clone, and what stands in for the rest.

Nothing here is part of the project's own computation. Of `modelscope/models/multi_modal/mplug` everything is run as it
is, but for HiTeA's network, which no model here uses; the framework around it is replaced by what that code asks of it.
"""

from __future__ import annotations

import sys
import types
from importlib import import_module
from pathlib import Path
from unittest.mock import MagicMock

import torch

PACKAGES = ("modelscope", "modelscope.models", "modelscope.models.multi_modal", "modelscope.utils")


class ModelScope:
    """`modeling_mplug` of a clone of github.com/modelscope/modelscope."""

    def __init__(self, clone: Path) -> None:
        """Raises FileNotFoundError where `clone` is not one."""
        folder = clone / "modelscope" / "models" / "multi_modal"
        if not (folder / "mplug" / "modeling_mplug.py").is_file():
            raise FileNotFoundError(f"{clone} is no clone of modelscope: it has no {folder}/mplug/modeling_mplug.py")
        from transformers import pytorch_utils

        for name in PACKAGES:  # by file: their own __init__ import the whole framework
            sys.modules[name] = package = types.ModuleType(name)
            package.__path__ = [str(clone / name.replace(".", "/"))]
        constants = types.ModuleType("modelscope.utils.constant")
        constants.Tasks = types.SimpleNamespace(
            visual_question_answering="visual-question-answering",
            image_captioning="image-captioning",
            image_text_retrieval="image-text-retrieval",
            video_captioning="video-captioning",
            video_question_answering="video-question-answering",
        )
        constants.ModelFile = types.SimpleNamespace(VOCAB_FILE="vocab.txt", TORCH_MODEL_BIN_FILE="pytorch_model.bin")
        sys.modules["modelscope.utils.constant"] = constants
        sys.modules["modelscope.utils.torch_utils"] = pytorch_utils
        sys.modules["modelscope.models.multi_modal.mplug.mvit"] = MagicMock(name="mvit")
        self.modeling = import_module("modelscope.models.multi_modal.mplug.modeling_mplug")
        self.clip = import_module("modelscope.models.multi_modal.mplug.clip.clip")
        # Its own knows the two published widths alone.
        self.modeling.MPlug._initialize_clip = staticmethod(self._clip)

    def model(self, folder: Path, *, weights: bool = True) -> torch.nn.Module:
        """Return the model of a ModelScope directory in evaluation mode, with or without its weights."""
        return self.modeling.MPlug.from_pretrained(str(folder), load_checkpoint=weights).eval()

    def _clip(self, config, num_patches: int = 0):
        clip = self.clip.load_from_config(config)
        side = config.image_res // config.clip_vision_patch_size
        clip.visual.positional_embedding = torch.nn.Parameter(torch.zeros(side**2 + 1, config.clip_vision_width))
        return clip
