"""Keys and shapes of the published state dicts, at the sizes of any configuration.

The authors' scripts and ModelScope save whole models: CLIP with its text tower, momentum copies, queues and buffers
besides what answers depend on. `layout_of` lists all of it, so that a checkpoint can be rehearsed at its full size.
Source: the classes `MPLUG` of github.com/X-PLUG/mPLUG at c666bfa, `models/model_*.py`, and `MPlugFor…` of
github.com/modelscope/modelscope at 2905da1, `models/multi_modal/mplug`; the checkpoint of pre-training has no published
class, and its keys are what the authors' fine-tuning scripts rename on loading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mplug.config import MPlugConfig

LAYOUTS = ("authors", "modelscope")
PRETRAINING = "pretraining"

#: Of a published state dict, by the task it was trained for: networks, which of them have momentum copies where the
#: YAML says `distill`, and what else it holds.
_FULL = ("visual_encoder", "text_encoder", "fusion_encoder", "text_decoder")
_NETWORKS = {
    "image-captioning": _FULL,
    "video-captioning": ("visual_encoder", "text_decoder"),
    "visual-question-answering": _FULL,
    "video-question-answering": _FULL,
    "image-text-retrieval": _FULL[:3],
    "video-text-retrieval": _FULL[:3],
    "visual-grounding": _FULL,
    PRETRAINING: _FULL,
}
_PROJECTED = ("image-text-retrieval", "video-text-retrieval", "visual-grounding", PRETRAINING)
_CONTRASTED = ("image-text-retrieval", "video-text-retrieval", PRETRAINING)
_DISTILLED = ("visual-question-answering", "video-question-answering", *_CONTRASTED)
#: Published networks: nobody published one for NLVR2 or visual entailment.
TASKS = tuple(_NETWORKS)

#: CLIP's text tower behind each `clip_name`: embed_dim, width, heads are those of the models that OpenAI published.
_TEXT_TOWERS: dict[str, dict[str, int]] = {
    "ViT-B-16": {"embed_dim": 512, "transformer_width": 512},
    "ViT-L-14": {"embed_dim": 768, "transformer_width": 768},
}
_TEXT_TOWER = {"context_length": 77, "vocab_size": 49_408, "transformer_layers": 12}
#: Bins of a box in the authors' grounding model, which sets them itself, whatever the image size.
_BOX_BINS = 337


@dataclass(frozen=True)
class Array:
    """An entry of a state dict: its shape, and whether it holds whole numbers (int64) instead of floating ones."""

    shape: tuple[int, ...]
    whole: bool = False
    of: str = ""  #: the key whose values it has, too: a tied weight or a momentum copy
    tied: bool = False  #: it is the very same tensor as `of`

    def within(self, part: str) -> Array:
        """Return the same entry of a larger state dict, in which its network is `part`."""
        return replace(self, of=f"{part}.{self.of}") if self.of else self


Layout = dict[str, Array]


def layout_of(config: MPlugConfig, document: Mapping[str, object], task: str, layout: str = "authors") -> Layout:
    """Return every key of a published state dict and its shape.

    `document` is the YAML, whose `clip_*`, `distill` and `queue_size` count here besides what `config` knows of it;
    `task` is one of `TASKS`, `layout` one of `LAYOUTS`. Raises ValueError for another task.
    """
    if task not in TASKS:
        raise ValueError(f"no network was published for {task}; there are {', '.join(TASKS)}")
    width, bridged = config.text.hidden_size, config.projects_vision
    parts: dict[str, Layout] = {}
    if bridged:
        parts["visn_fc"] = _linear("", width, config.vision.width)
        parts["visn_layer_norm"] = _norm("", width)
    for name in _NETWORKS[task]:
        parts[name] = _network(name, config, document, task)
    if layout == "modelscope" and "fusion_encoder" in parts:  # whose fusion encoder has no embeddings
        fusion = parts["fusion_encoder"]
        parts["fusion_encoder"] = {key: array for key, array in fusion.items() if not key.startswith("embeddings.")}
    if task in _PROJECTED:
        for name in ("vision_proj", "text_proj"):
            parts[name] = _linear("", config.embed_dim, width)
    if task in _CONTRASTED:
        parts["itm_head"] = _linear("", 2, width)
    entries = {f"{part}.{key}": array.within(part) for part, keys in parts.items() for key, array in keys.items()}
    if task in _DISTILLED and document.get("distill", True):
        for part in (part for part in parts if part != "itm_head"):
            for key, array in parts[part].items():
                copied = array.within(f"{part}_m") if array.tied else replace(array, of=f"{part}.{key}")
                entries[f"{part}_m.{key}"] = copied
    return entries | _buffers(config, document, task)


def _network(name: str, config: MPlugConfig, document: Mapping[str, object], task: str) -> Layout:
    text = config.text
    if name == "visual_encoder":
        return _clip(config, document)
    if name == "fusion_encoder":
        keys = _bert(config, text.num_hidden_layers, cross=True)
        return _prefixed("fusion", keys) | _cls(config, "fusion") if task == PRETRAINING else keys
    if name == "text_decoder":
        return _prefixed("bert", _bert(config, text.text_decode_layers, cross=True)) | _cls(config, "bert")
    # The authors' grounding model keeps only so many layers of its text encoder (`del_unused_modules`).
    layers = min(text.text_encoder_layers, text.stride_layer if task == "visual-grounding" else 1 << 30)
    keys = _bert(config, layers, cross=False)
    return _prefixed("bert", keys) | _cls(config, "bert") if task == PRETRAINING else keys


def _buffers(config: MPlugConfig, document: Mapping[str, object], task: str) -> Layout:
    if task == "visual-grounding":
        vocabulary = Array((config.text.vocab_size,))
        return {
            "prefix_ids": Array((1,), whole=True),
            "target_ids": Array((_BOX_BINS,), whole=True),
            "bbox_prob_mask": vocabulary,
        }
    if task not in _CONTRASTED:
        return {}
    size = int(document.get("queue_size", 65_536))  # type: ignore[call-overload]
    return {
        "temp": Array(()),
        "image_queue": Array((config.embed_dim, size)),
        "text_queue": Array((config.embed_dim, size)),
        "idx_queue": Array((1, size), whole=True),
        "queue_ptr": Array((1,), whole=True),
    }


def _clip(config: MPlugConfig, document: Mapping[str, object]) -> Layout:
    vision = config.vision
    tower = _TEXT_TOWER | _TEXT_TOWERS.get(str(document.get("clip_name")), _TEXT_TOWERS["ViT-L-14"])
    tower = {name: int(document.get(f"clip_{name}", value)) for name, value in tower.items()}  # type: ignore[call-overload]
    width, embed = tower["transformer_width"], tower["embed_dim"]
    visual = {
        "class_embedding": Array((vision.width,)),
        "positional_embedding": Array((vision.tokens, vision.width)),
        "proj": Array((vision.width, embed)),
        "conv1.weight": Array((vision.width, 3, vision.patch_size, vision.patch_size)),
        **_norm("ln_pre", vision.width),
        **_clip_blocks(vision.width, vision.layers),
        **_norm("ln_post", vision.width),
    }
    return {
        "positional_embedding": Array((tower["context_length"], width)),
        "text_projection": Array((width, embed)),
        "logit_scale": Array(()),
        **_prefixed("visual", visual),
        **_clip_blocks(width, tower["transformer_layers"]),
        "token_embedding.weight": Array((tower["vocab_size"], width)),
        **_norm("ln_final", width),
    }


def _clip_blocks(width: int, layers: int) -> Layout:
    block = {
        "attn.in_proj_weight": Array((3 * width, width)),
        "attn.in_proj_bias": Array((3 * width,)),
        **_linear("attn.out_proj", width, width),
        **_norm("ln_1", width),
        **_linear("mlp.c_fc", 4 * width, width),
        **_linear("mlp.c_proj", width, 4 * width),
        **_norm("ln_2", width),
    }
    return {
        key: array
        for index in range(layers)
        for key, array in _prefixed(f"transformer.resblocks.{index}", block).items()
    }


def _bert(config: MPlugConfig, layers: int, *, cross: bool) -> Layout:
    text = config.text
    width = text.hidden_size
    layer: Layout = {}
    for attention in ("attention", "crossattention") if cross else ("attention",):
        for part in ("query", "key", "value"):
            layer |= _linear(f"{attention}.self.{part}", width, width)
        layer |= _linear(f"{attention}.output.dense", width, width) | _norm(f"{attention}.output.LayerNorm", width)
    layer |= _linear("intermediate.dense", text.intermediate_size, width)
    layer |= _linear("output.dense", width, text.intermediate_size) | _norm("output.LayerNorm", width)
    embeddings = {
        "position_ids": Array((1, text.max_positions), whole=True),
        "word_embeddings.weight": Array((text.vocab_size, width)),
        "position_embeddings.weight": Array((text.max_positions, width)),
        "token_type_embeddings.weight": Array((text.type_vocab_size, width)),
        **_norm("LayerNorm", width),
    }
    stacked = dict(_repeated("encoder.layer", layer, layers))
    return _prefixed("embeddings", embeddings) | stacked


def _cls(config: MPlugConfig, infix: str) -> Layout:
    """The head over the vocabulary; its matrix is the embedding's, its bias stands under two names."""
    width, size = config.text.hidden_size, config.text.vocab_size
    head = {
        "bias": Array((size,)),
        **_linear("transform.dense", width, width),
        **_norm("transform.LayerNorm", width),
        "decoder.weight": Array((size, width), of=f"{infix}.embeddings.word_embeddings.weight", tied=True),
        "decoder.bias": Array((size,), of="cls.predictions.bias", tied=True),
    }
    return _prefixed("cls.predictions", head)


def _linear(name: str, outputs: int, inputs: int) -> Layout:
    dot = f"{name}." if name else ""
    return {f"{dot}weight": Array((outputs, inputs)), f"{dot}bias": Array((outputs,))}


def _norm(name: str, width: int) -> Layout:
    dot = f"{name}." if name else ""
    return {f"{dot}weight": Array((width,)), f"{dot}bias": Array((width,))}


def _prefixed(prefix: str, keys: Layout) -> Layout:
    return {f"{prefix}.{key}": array for key, array in keys.items()}


def _repeated(prefix: str, keys: Layout, times: int) -> Iterator[tuple[str, Array]]:
    for index in range(times):
        yield from _prefixed(f"{prefix}.{index}", keys).items()
