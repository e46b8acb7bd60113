"""Where training starts from, and what it leaves: checkpoint folders in every layout that can be served."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from mplug.checkpoint import (
    CheckpointError,
    check_vocabulary,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    own_names,
    read_state_dict,
    save_weights,
)
from mplug.config import MPlugConfig, read_config
from mplug.network import MPlug
from mplug.network.mplug import parts_needed
from mplug.tasks.vqa import ANSWER_LENGTHS

#: Task of training → what the checkpoint is for in the end.
SERVED_TASKS = {
    "caption": ("image-captioning",),
    "vqa": ("visual-question-answering",),
    "retrieval": ("image-text-retrieval",),
    "grounding": ("visual-grounding",),
    "nlvr": ("nlvr2",),
    "entail": ("visual-entailment",),
    "pretrain": ("image-captioning", "visual-question-answering", "image-text-retrieval"),
}


def start_network(
    init: Path, tasks: tuple[str, ...], *, image_size: int | None = None, seed: int = 0
) -> tuple[MPlug, Path]:
    """A checkpoint's network for other tasks than it was trained for, and its vocabulary.

    Parts that the checkpoint lacks altogether (a head, the decoder of a retrieval model) start fresh, and a warning
    names them. Raises CheckpointError for a part of which only some weights are there, ConfigError for bad files.
    """
    files = find_checkpoint(init)
    config = read_config(files.config, files.bert_config, task=tasks[0])
    generation = config.generation
    if tasks[0].endswith("question-answering") and generation.min_length > 1:
        generation = replace(generation, **ANSWER_LENGTHS)  # a captioner's least length forbids the answer "yes"
    config = replace(config, tasks=tasks, generation=generation)
    if image_size is not None:
        config = config.at_image_size(image_size)
    check_vocabulary(files.vocabulary, config)
    network = MPlug(config)
    network.initialise(seed)
    stored = own_names(read_state_dict(files.weights), config)
    present = {key.split(".")[0] for key in stored}
    missing = [part for part in parts_needed(config) if part not in present]
    if "vision_encoder" in missing:
        raise CheckpointError(f"{files.weights}: holds no vision encoder, so there is nothing to start from")
    if missing:
        warnings.warn(f"{files.weights}: has no {', '.join(missing)}; training starts them from nothing", stacklevel=2)
        fresh = network.state_dict()
        stored |= {key: value for key, value in fresh.items() if key.split(".")[0] in missing}
    load_weights(network, stored, source=files.weights)
    return network, files.vocabulary


def new_network(configuration: Path, tasks: tuple[str, ...], *, image_size: int | None = None, seed: int = 0) -> MPlug:
    """A network from nothing, of the sizes in a folder with `config.yaml` and `config_bert.json`."""
    config = read_config(configuration / "config.yaml", configuration / "config_bert.json", task=tasks[0])
    config = replace(config, tasks=tasks)
    network = MPlug(config if image_size is None else config.at_image_size(image_size))
    network.initialise(seed)
    return network


def config_documents(config: MPlugConfig) -> tuple[dict[str, object], dict[str, object]]:
    """The YAML and the BERT JSON of a configuration, in the published keys and our own."""
    vision, text, generation = config.vision, config.text, config.generation
    document = {
        "tasks": list(config.tasks),
        "image_res": vision.image_size,
        "clip_vision_layers": vision.layers,
        "clip_vision_width": vision.width,
        "clip_vision_patch_size": vision.patch_size,
        **({"vision_stem": list(vision.stem)} if vision.stem else {}),  # ours alone
        "embed_dim": config.embed_dim,
        "max_text_length": config.max_text_length,
        "beam_size": generation.num_beams,
        "min_length": generation.min_length,
        "max_length": generation.max_length,
        "caption_states": config.caption_states,
        "prompt": config.prompt,
        "eos": config.eos,
        "final_sep": config.final_sep,
        "frame_sampling": config.frame_sampling,
        "grounding_statistics": config.grounding_statistics,
    }
    bert = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.max_positions,
        "type_vocab_size": text.type_vocab_size,
        "layer_norm_eps": text.layer_norm_eps,
        "hidden_dropout_prob": text.dropout,
        "num_hidden_layers": text.num_hidden_layers,
        "text_encoder_layers": text.text_encoder_layers,
        "fusion_layers": text.fusion_layers,
        "stride_layer": text.stride_layer,
        "text_decode_layers": text.text_decode_layers,
    }
    return document, bert


def write_checkpoint(network: MPlug, vocabulary: Path, folder: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write the four files of a checkpoint, and read them back."""
    folder.mkdir(parents=True, exist_ok=True)
    document, bert = config_documents(network.config)
    (folder / "config.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (folder / "config_bert.json").write_text(json.dumps(bert, indent=1) + "\n")
    if vocabulary.resolve() != (folder / "vocab.txt").resolve():
        shutil.copyfile(vocabulary, folder / "vocab.txt")
    save_weights(network, folder / "model.safetensors", dtype=dtype)
    load_checkpoint(folder)
