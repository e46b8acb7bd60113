"""Read what a checkpoint is from the published files: its sizes, tasks and generation lengths.

Two files describe a published checkpoint: a YAML (image size, CLIP sizes, generation lengths) and a
BERT JSON (text sizes, how many layers each stage runs, the stride of the skip-connections). Our own
checkpoints are described by the same two, so there is one reader.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mplug.contract import MAX_BEAMS

#: Width of one attention head of CLIP's vision transformer, in every published size.
CLIP_HEAD_WIDTH = 64

#: Pixels from one place of a stem's first convolution to the next; each further one doubles them.
STEM_STRIDE = 4
STEM_GROUPS = 8  # of channels that are normalised together
MAX_STEM = 6  # convolutions: patches of 128 pixels

#: Sizes behind the `clip_name`s of the published YAMLs that do not spell them out.
CLIP_SIZES = {
    "ViT-B-16": {"clip_vision_width": 768, "clip_vision_layers": 12, "clip_vision_patch_size": 16},
    "ViT-L-14": {"clip_vision_width": 1024, "clip_vision_layers": 24, "clip_vision_patch_size": 14},
}

#: Published names of a checkpoint's task, and ours.
TASKS = (
    "image-captioning",
    "visual-question-answering",
    "image-text-retrieval",
    "visual-grounding",
    "nlvr2",
    "visual-entailment",
    "video-captioning",
    "video-question-answering",
    "video-text-retrieval",
)

CAPTION_STATES = ("image", "fused")
FRAME_SAMPLINGS = ("published", "even")
GROUNDING_STATISTICS = ("clip", "imagenet")

#: Largest side of the square input, pixels: attention over its patches would take tens of gigabytes beyond.
MAX_IMAGE_SIZE = 2048


class ConfigError(ValueError):
    """A configuration file is missing, unreadable, or holds an impossible value."""


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the CLIP vision transformer."""

    image_size: int  #: side of the square input, pixels
    patch_size: int  #: side of a patch, pixels
    width: int
    layers: int
    #: Channels of the convolutions of a stem in place of the one convolution per patch, as published; empty: none.
    stem: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "width", "layers"):
            _require_positive(f"vision {name}", getattr(self, name))
        for channels in self.stem:
            if channels < 1 or channels % STEM_GROUPS:
                raise ConfigError(f"vision stem {channels} is not a positive multiple of {STEM_GROUPS}")
        if self.stem and self.patch_size != STEM_STRIDE * 2 ** (len(self.stem) - 1):
            raise ConfigError(
                f"a stem of {len(self.stem)} convolutions has patches of {STEM_STRIDE * 2 ** (len(self.stem) - 1)} "
                f"pixels, not {self.patch_size}"
            )
        if self.image_size < self.patch_size:
            raise ConfigError(f"image size {self.image_size} is smaller than one patch of {self.patch_size} pixels")
        if self.image_size > MAX_IMAGE_SIZE:
            raise ConfigError(f"image size {self.image_size} exceeds the limit of {MAX_IMAGE_SIZE} pixels")
        if self.width % CLIP_HEAD_WIDTH:
            raise ConfigError(f"vision width {self.width} is not a multiple of the head width {CLIP_HEAD_WIDTH}")

    @property
    def heads(self) -> int:
        return self.width // CLIP_HEAD_WIDTH

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Length of the image states: the class token and the patches."""
        return 1 + self.grid**2


@dataclass(frozen=True)
class TextConfig:
    """Sizes that the text encoder, the fusion encoder and the text decoder share, and their depths."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    max_positions: int
    type_vocab_size: int
    layer_norm_eps: float
    dropout: float
    num_hidden_layers: int  #: fusion layers that are stored; only the last `fusion_layers` run
    text_encoder_layers: int
    fusion_layers: int
    stride_layer: int  #: every how many fusion layers the skip-connection closes
    text_decode_layers: int

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "heads",
            "max_positions",
            "type_vocab_size",
            "text_encoder_layers",
            "fusion_layers",
            "stride_layer",
            "text_decode_layers",
        ):
            _require_positive(name, getattr(self, name))
        if self.hidden_size % self.heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of its {self.heads} heads")
        if self.fusion_layers > self.num_hidden_layers:
            raise ConfigError(f"fusion_layers {self.fusion_layers} exceeds num_hidden_layers {self.num_hidden_layers}")
        if not 0 < self.layer_norm_eps < 1:  # false for NaN too
            raise ConfigError(f"layer_norm_eps is {self.layer_norm_eps}, but must be between 0 and 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"hidden_dropout_prob is {self.dropout}, but must be between 0 and 1")

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.heads

    def fusion_layer_is_connected(self, index: int) -> bool:
        """Return whether running fusion layer `index` is connected attention (paper, section 3.2).

        The first and every layer off the stride are what the published code calls asymmetric
        co-attention when `index == 0 or index % stride_layer != 0`; the others are connected.
        """
        return index != 0 and index % self.stride_layer == 0


@dataclass(frozen=True)
class GenerationConfig:
    """Defaults of beam search, from the YAML; a request may override each."""

    num_beams: int = 5
    min_length: int = 8
    max_length: int = 25
    #: Exponent of the length penalty ((5+t+1)/6)^alpha; the published code fixes it at 0.6.
    length_penalty: float = 0.6

    def __post_init__(self) -> None:
        _require_positive("beam_size", self.num_beams)
        if self.num_beams > MAX_BEAMS:
            raise ConfigError(f"beam_size {self.num_beams} exceeds the {MAX_BEAMS} beams that can be served")
        _require_positive("max_length", self.max_length)
        if not 0 <= self.min_length <= self.max_length:
            raise ConfigError(f"min_length {self.min_length} is not between 0 and max_length {self.max_length}")


@dataclass(frozen=True)
class MPlugConfig:
    """Everything that is known about a checkpoint before its weights are read."""

    vision: VisionConfig
    text: TextConfig
    generation: GenerationConfig
    tasks: tuple[str, ...]
    #: Width of the contrastive projections; absent heads make it irrelevant.
    embed_dim: int
    #: Tokens a text is padded to before the text encoder.
    max_text_length: int
    #: What the captioner's decoder reads: `image` states (published) or `fused` ones (ours).
    caption_states: str = "image"
    #: Text that our captioner's text encoder reads, and that published captioners decode first.
    prompt: str = ""
    #: What stands behind every answer that is ranked, before the tokenizer's own `[SEP]`.
    eos: str = ""
    #: Whether a question, a retrieval text or a ranked answer ends in the tokenizer's `[SEP]`; the authors' own
    #: tokenizer leaves it out.
    final_sep: bool = True
    #: Which frames of a video are looked at: at whole steps as `published`, or `even` ones; see `sample_indices`.
    frame_sampling: str = "published"
    #: Mean and deviation that grounding normalises pixels with: `clip`, as the published weights were trained, or
    #: `imagenet`, as the authors' evaluation script does.
    grounding_statistics: str = "clip"

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise ConfigError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        if self.caption_states not in CAPTION_STATES:
            raise ConfigError(f"caption_states {self.caption_states!r} is not {' or '.join(CAPTION_STATES)}")
        if self.frame_sampling not in FRAME_SAMPLINGS:
            raise ConfigError(f"frame_sampling {self.frame_sampling!r} is not {' or '.join(FRAME_SAMPLINGS)}")
        if self.grounding_statistics not in GROUNDING_STATISTICS:
            choices = " or ".join(GROUNDING_STATISTICS)
            raise ConfigError(f"grounding_statistics {self.grounding_statistics!r} is not {choices}")
        _require_positive("embed_dim", self.embed_dim)
        if self.max_text_length < 3:
            raise ConfigError(f"max_text_length {self.max_text_length} is too short for one word")
        if self.max_text_length > self.text.max_positions:
            raise ConfigError(
                f"max_text_length {self.max_text_length} exceeds the {self.text.max_positions} "
                "positions of the text encoder"
            )
        if self.generation.max_length >= self.text.max_positions:
            raise ConfigError(
                f"max_length {self.generation.max_length} needs more than the "
                f"{self.text.max_positions} positions of the text decoder"
            )

    @property
    def projects_vision(self) -> bool:
        """Whether `visn_fc` and its norm bring the vision width to the text width (mPLUG large)."""
        return self.vision.width != self.text.hidden_size

    @property
    def ranks_candidates(self) -> bool:
        """Whether answers that a client gives are to be ranked, besides those that are generated."""
        return any(task.endswith("question-answering") for task in self.tasks)

    def at_image_size(self, image_size: int) -> MPlugConfig:
        """Return the configuration of the same checkpoint at another image size, in pixels."""
        return replace(self, vision=replace(self.vision, image_size=image_size))


#: Beams and least and most tokens of a search, per task, where the YAML does not say: what the authors' shell scripts
#: pass to their programs; those for questions leave the programs' own.
DEFAULT_GENERATION = {
    "visual-question-answering": (5, 1, 10),
    "video-question-answering": (5, 1, 10),
    "video-captioning": (10, 15, 25),
}
CAPTION_GENERATION = (5, 8, 25)

#: What ModelScope's `MPlugConfig` takes where a YAML of its layout, which alone says `task`, leaves something out.
MODELSCOPE_DEFAULTS = {"image_res": 504, "clip_name": "ViT-L-14"}
MODELSCOPE_GENERATION = (5, 1, 10)

#: Tokens per text where the YAML does not say: what the published scripts pass to the tokenizer.
DEFAULT_TEXT_LENGTHS = {
    "image-captioning": 25,
    "video-captioning": 25,
    "visual-question-answering": 80,
    "video-question-answering": 80,
    "image-text-retrieval": 30,
    "video-text-retrieval": 35,
    "visual-grounding": 20,
}


def bert_config_name(yaml_path: Path) -> str | None:
    """Return the file name of the BERT JSON that a YAML refers to, or None if it names none.

    The folder in front of it is that of the authors' checkout and means nothing here.
    Raises ConfigError for a YAML that cannot be read.
    """
    said = _load(yaml_path, yaml.safe_load).get("bert_config")
    return Path(said).name if isinstance(said, str) and said else None


def read_config(yaml_path: Path, bert_path: Path, *, task: str | None = None) -> MPlugConfig:
    """Read a checkpoint's YAML and BERT JSON.

    `task` overrides what the YAML says; the authors' YAMLs say nothing of it.
    Raises ConfigError naming the file and the key that is missing or wrong.
    """
    document = _load(yaml_path, yaml.safe_load)
    if "task" in document:
        document = {**MODELSCOPE_DEFAULTS, **document}
    bert = _load(bert_path, json.loads)
    tasks = _tasks(document, yaml_path, task)
    try:
        return MPlugConfig(
            vision=_vision(document, yaml_path),
            text=_text(bert, bert_path),
            generation=_generation(document, yaml_path, tasks[0]),
            tasks=tasks,
            embed_dim=_number(document, "embed_dim", yaml_path, 256),
            max_text_length=min(
                _number(document, "max_text_length", yaml_path, DEFAULT_TEXT_LENGTHS.get(tasks[0], 30)),
                _number(bert, "max_position_embeddings", bert_path, 512),
            ),
            caption_states=str(document.get("caption_states", "image")),
            prompt=str(document.get("prompt") or ""),
            eos=str(document.get("eos") or ""),
            final_sep=_truth(document, "final_sep", yaml_path, True),
            frame_sampling=str(document.get("frame_sampling", "published")),
            grounding_statistics=str(document.get("grounding_statistics", "clip")),
        )
    except ConfigError as error:
        if str(yaml_path) in str(error) or str(bert_path) in str(error):
            raise
        raise ConfigError(f"{yaml_path} with {bert_path.name}: {error}") from None


def _load(path: Path, parse: Any) -> dict[str, Any]:
    try:
        document = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be parsed: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: is not a mapping of names to values")
    return document


def _tasks(document: dict[str, Any], path: Path, override: str | None) -> tuple[str, ...]:
    said = override or document.get("tasks") or document.get("task")
    if said is None:
        raise ConfigError(f"{path}: names no task; pass --task with one of {', '.join(TASKS)}")
    if isinstance(said, str):
        return (said,)
    if not isinstance(said, list):
        raise ConfigError(f"{path}: the task is {said!r}, neither a name nor a list of names")
    return tuple(str(task) for task in said)


def _vision(document: dict[str, Any], path: Path) -> VisionConfig:
    sizes = {**CLIP_SIZES.get(str(document.get("clip_name")), {}), **document}
    return VisionConfig(
        image_size=_number(sizes, "image_res", path),
        patch_size=_number(sizes, "clip_vision_patch_size", path),
        width=_number(sizes, "clip_vision_width", path),
        layers=_number(sizes, "clip_vision_layers", path),
        stem=_stem(document, path),
    )


def _stem(document: dict[str, Any], path: Path) -> tuple[int, ...]:
    said = document.get("vision_stem", [])
    if not isinstance(said, list) or len(said) > MAX_STEM or not all(type(count) is int for count in said):
        raise ConfigError(f"{path}: vision_stem is {said!r}, but must list up to {MAX_STEM} numbers of channels")
    return tuple(said)


def _generation(document: dict[str, Any], path: Path, task: str) -> GenerationConfig:
    """Read the search defaults; a published length that contradicts the one given is adjusted to it."""
    modelscope = "task" in document
    beams, least, most = MODELSCOPE_GENERATION if modelscope else DEFAULT_GENERATION.get(task, CAPTION_GENERATION)
    max_length = _number(document, "max_length", path, max(most, _number(document, "min_length", path, 0)))
    return GenerationConfig(
        num_beams=_number(document, "beam_size", path, beams),
        min_length=_number(document, "min_length", path, min(least, max_length)),
        max_length=max_length,
    )


def _text(bert: dict[str, Any], path: Path) -> TextConfig:
    activation = bert.get("hidden_act", "gelu")
    if activation != "gelu":
        raise ConfigError(f"{path}: hidden_act {activation!r} is not supported; mPLUG uses 'gelu'")
    layers = _number(bert, "num_hidden_layers", path)
    return TextConfig(
        vocab_size=_number(bert, "vocab_size", path),
        hidden_size=_number(bert, "hidden_size", path),
        intermediate_size=_number(bert, "intermediate_size", path),
        heads=_number(bert, "num_attention_heads", path),
        max_positions=_number(bert, "max_position_embeddings", path),
        type_vocab_size=_number(bert, "type_vocab_size", path, 2),
        layer_norm_eps=_real(bert, "layer_norm_eps", path, 1e-12),
        dropout=_real(bert, "hidden_dropout_prob", path, 0.0),
        num_hidden_layers=layers,
        text_encoder_layers=_number(bert, "text_encoder_layers", path, 6),
        fusion_layers=_number(bert, "fusion_layers", path, 6),
        stride_layer=_number(bert, "stride_layer", path, 3),
        text_decode_layers=_number(bert, "text_decode_layers", path, 12),
    )


def _number(document: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = document.get(key, default)
    if value is None:
        raise ConfigError(f"{path}: {key} is missing")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{path}: {key} is {value!r}, not a whole number")
    return value


def _truth(document: dict[str, Any], key: str, path: Path, default: bool) -> bool:
    value = document.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{path}: {key} is {value!r}, not true or false")
    return value


def _real(document: dict[str, Any], key: str, path: Path, default: float) -> float:
    value = document.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{path}: {key} is {value!r}, not a number")
    return float(value)


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}, but must be at least 1")
