"""The published code on a CPU, at any size: what `make_cases.py` imports of a clone, and what stands in for the rest.

Nothing here is part of the project's own computation. The clone is imported as it is; packages that its modules
import and that no answer depends on (loggers, cloud storage, GPU extensions) are replaced by empty ones.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from unittest.mock import MagicMock

import numpy as np
import torch
from PIL import Image

#: Imported by the scripts, needed by no answer.
REPLACED = (
    *(
        "apex",
        "decord",
        "deepspeed",
        "ftfy",
        "icecream",
        "language_evaluation",
        "optim",
        "oss2",
        "ruamel_yaml",
        "scheduler",
    ),
    *("timm", "timm.models", "timm.models.layers", "timm.models.registry", "timm.models.vision_transformer"),
    *("torchvision", "torchvision.datasets", "torchvision.datasets.utils", "torchvision.transforms"),
    *("torchvision.ops", "torchvision.ops.boxes", "torchvision.transforms.functional", "torchvision.models"),
    *("einops", "matplotlib", "matplotlib.transforms", "mmdet", "mmdet.models", "mmdet.models.losses", "turtle"),
    *("scipy.io", "vgTools.utils.misc"),
)
#: Parameters of the published models that no answer depends on, or that are tied to others.
UNUSED = (
    *("position_ids", "_m.", "queue", "temp", "fusion_encoder.embeddings.", "predictions.decoder."),
    *("prefix_ids", "target_ids", "bbox_prob_mask", "vision_proj.", "text_proj."),
)


class VideoReader:
    """Stands in for decord's: frames are those of a video decoded beforehand, resized as pictures are."""

    videos: ClassVar[dict[str, list]] = {}  #: path → upright RGB pictures
    asked: ClassVar[list[int]] = []  #: indices of the last batch

    def __init__(self, path: str, width: int, height: int) -> None:
        self.pictures, self.size = self.videos[path], (width, height)

    def __len__(self) -> int:
        return len(self.pictures)

    def get_batch(self, indices) -> torch.Tensor:
        """Frames `[n, height, width, 3]`, uint8; the indices are kept in `asked`."""
        VideoReader.asked = list(map(int, indices))
        return torch.from_numpy(np.stack([np.asarray(resized(self.pictures[i], self.size)) for i in indices]))


class Transforms:
    """Stands in for `torchvision.transforms.functional`: what the published test transform of grounding calls."""

    @staticmethod
    def resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The picture at `size` (height, width), bilinear, torchvision's default."""
        return picture.resize(size[::-1], Image.Resampling.BILINEAR)

    @staticmethod
    def to_tensor(picture: Image.Image) -> torch.Tensor:
        """`[3, H, W]`, 0…1."""
        return torch.from_numpy(np.asarray(picture, np.float32).transpose(2, 0, 1) / 255)

    @staticmethod
    def normalize(pixels: torch.Tensor, mean, std) -> torch.Tensor:
        """Normalised per channel."""
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def resized(picture, size: tuple[int, int]):
    """The picture at `size`, bicubic, as the published transforms do it."""
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


class Published:
    """Modules of a clone of the authors' repository."""

    def __init__(self, clone: Path, *, own_tokenizer: bool = False) -> None:
        """`own_tokenizer`: the clone's, which writes no last `[SEP]`, in place of ModelScope's, that of transformers.

        Raises FileNotFoundError where `clone` is not one.
        """
        if not (clone / "models" / "modeling_mplug.py").is_file():
            raise FileNotFoundError(f"{clone} is no clone of X-PLUG/mPLUG: it has no models/modeling_mplug.py")
        import transformers  # before the others: it looks for some of those that are replaced

        for name in REPLACED:
            sys.modules[name] = MagicMock(name=name, __path__=[])
        sys.modules["decord"].VideoReader = VideoReader
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
        sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"] = Transforms
        sys.modules["einops"].repeat = lambda row, _, B: row[None].expand(B, -1)
        # Its data sets by file: the package's own __init__ imports all of them and what each of them needs.
        package = types.ModuleType("dataset")
        package.__path__ = [str(clone / "dataset")]
        sys.modules["dataset"] = package
        package.create_dataset = package.create_sampler = package.create_loader = MagicMock()
        sys.path.insert(0, str(clone))
        from models import modeling_mplug, tokenization_bert

        for model in (modeling_mplug.BertModel, modeling_mplug.FusionModel, modeling_mplug.BertPrefixModel):
            model.from_pretrained = classmethod(_from_config)
        modeling_mplug.BertLMHeadModel.from_pretrained = classmethod(_from_config)
        tokenizers = tokenization_bert if own_tokenizer else transformers
        self.own_tokenizer, self.tokenizer = own_tokenizer, tokenizers.BertTokenizer.from_pretrained

    def model(self, kind: str, config: Mapping, folder: Path) -> torch.nn.Module:
        """Return an `MPLUG` of `models.model_<kind>` at a configuration, in evaluation mode, on random weights."""

        module = importlib.import_module(f"models.model_{kind}")
        module.initialize_clip = lambda _: (_clip(config), None)
        config = {**config, "bert_config": str(folder / "config_bert.json"), "use_checkpoint": False}
        config |= {"text_encoder": "", "text_decoder": ""}
        return module.MPLUG(config=config, tokenizer=self.tokenizer(folder)).eval()


def _from_config(cls, _: str, config, **options):
    return cls(config, **options)


def _clip(config: Mapping):
    """Return CLIP at the sizes of a ModelScope YAML."""
    clip = importlib.import_module("models.clip.model").CLIP(
        *(
            config[f"clip_{name}"]
            for name in (
                "embed_dim",
                "image_resolution",
                "vision_layers",
                "vision_width",
                "vision_patch_size",
                "context_length",
                "vocab_size",
                "transformer_width",
                "transformer_heads",
                "transformer_layers",
            )
        )
    )
    side = config["image_res"] // config["clip_vision_patch_size"]
    clip.visual.positional_embedding = torch.nn.Parameter(torch.randn(side**2 + 1, config["clip_vision_width"]) * 0.1)
    return clip


def is_needed(key: str) -> bool:
    """Whether any answer depends on a parameter: CLIP's text tower, copies and queues are for training."""
    tower = key.startswith("visual_encoder.") and not key.startswith("visual_encoder.visual.")
    return not tower and not any(part in key for part in UNUSED)


def load_weights(model: torch.nn.Module, path: Path, *, unused: tuple[str, ...] = ()) -> None:
    """Load weights of any published layout. Raises ValueError for parameters that are not there.

    `unused`: beginnings of names that may be missing, since what the model is asked does not depend on them.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("model", state.get("module", state))
    state = {key.removeprefix("model.").removeprefix("module."): value.float() for key, value in state.items()}
    for old, new in (("text_encoder.bert.", "text_encoder."), ("fusion_encoder.fusion.", "fusion_encoder.")):
        state = {key.replace(old, new) if key.startswith(old) else key: value for key, value in state.items()}
    own = model.state_dict()
    state = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    missing = [key for key in own if key not in state and is_needed(key) and not key.startswith(unused or "?")]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing[:8])}")
    model.load_state_dict(state, strict=False)


@contextmanager
def n_best(model: torch.nn.Module, beams: int, min_length: int, max_length: int):
    """Let the model's generation return all hypotheses of a search of these options."""
    generator = model.beam_generator
    kept = generator.beam_size, generator.min_length, generator.max_length
    generator.beam_size, generator.min_length, generator.max_length = beams, min_length, max_length
    search = generator._fast_translate_batch
    generator._fast_translate_batch = lambda *given, **options: search(*given, **{**options, "out_size": beams})
    try:
        yield
    finally:
        generator._fast_translate_batch = search
        generator.beam_size, generator.min_length, generator.max_length = kept
