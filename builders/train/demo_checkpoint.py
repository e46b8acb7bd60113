"""Trained weights → `checkpoints/demo`: the four files of a checkpoint, weights in half precision.

    python builders/train/demo_checkpoint.py build/train/demo/model.safetensors checkpoints/demo
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import yaml

from builders.data.vocabulary import build_vocabulary, write_vocabulary
from builders.train.demo import demo_config
from mplug.checkpoint import load_checkpoint, load_weights, read_state_dict, save_weights
from mplug.config import MPlugConfig
from mplug.network import MPlug


def config_documents(config: MPlugConfig) -> tuple[dict[str, object], dict[str, object]]:
    """The YAML and the BERT JSON of a configuration, in the published keys and our own."""
    vision, text, generation = config.vision, config.text, config.generation
    document = {
        "tasks": list(config.tasks), "image_res": vision.image_size, "clip_vision_layers": vision.layers,
        "clip_vision_width": vision.width, "clip_vision_patch_size": vision.patch_size, "embed_dim": config.embed_dim,
        "max_text_length": config.max_text_length, "beam_size": generation.num_beams,
        "min_length": generation.min_length, "max_length": generation.max_length,
        "caption_states": config.caption_states, "prompt": config.prompt,
    }
    bert = {
        "model_type": "bert", "hidden_act": "gelu", "vocab_size": text.vocab_size, "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size, "num_attention_heads": text.heads,
        "max_position_embeddings": text.max_positions, "type_vocab_size": text.type_vocab_size,
        "layer_norm_eps": text.layer_norm_eps, "hidden_dropout_prob": text.dropout,
        "num_hidden_layers": text.num_hidden_layers, "text_encoder_layers": text.text_encoder_layers,
        "fusion_layers": text.fusion_layers, "stride_layer": text.stride_layer,
        "text_decode_layers": text.text_decode_layers,
    }
    return document, bert


def write_checkpoint(weights: Path, folder: Path) -> None:
    """Write the checkpoint folder and read it back."""
    config = demo_config(128, len(build_vocabulary()))
    network = MPlug(config)
    load_weights(network, read_state_dict(weights), source=weights)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(network, folder / "model.safetensors")
    document, bert = config_documents(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (folder / "config_bert.json").write_text(json.dumps(bert, indent=1) + "\n")
    write_vocabulary(folder / "vocab.txt")
    load_checkpoint(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_checkpoint(options.weights, options.folder)


if __name__ == "__main__":
    main()
