"""Write a random checkpoint of base size: `python -m benchmarks.base_checkpoint --output DIR`.

Speed does not depend on what the weights say, so that nothing has to be downloaded to measure it. The folder
is in our layout (config.yaml, config_bert.json, vocab.txt, model.safetensors in half precision, about 450 MB)
and describes a published captioner: ViT-B/16 at 384 pixels, a decoder of 12 layers over the image states,
captions of exactly 20 tokens. Takes about half a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.presets import BEAMS, PRESETS, TOKENS, ModelSizes
from mplug.checkpoint import save_weights
from mplug.config import TASKS, read_config
from mplug.network import MPlug

#: BERT's first ids: 99 unused slots stand before the special tokens at 100, and 895 behind them.
SLOTS_BEFORE, SLOTS = 99, 994
CAPTIONING = ("image-captioning",)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def vocabulary(size: int) -> list[str]:
    """Return a substitute for BERT's vocabulary: special tokens at their ids, letters for prompts, then fillers."""
    tokens = ["[PAD]", *(f"[unused{slot}]" for slot in range(SLOTS_BEFORE)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [f"[unused{slot}]" for slot in range(SLOTS_BEFORE, SLOTS)]
    tokens += [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    if size < len(tokens):
        raise ValueError(f"a vocabulary of {size} tokens is too small for BERT's first {len(tokens)}")
    return [*tokens, *(f"word{index}" for index in range(size - len(tokens)))]


def documents(sizes: ModelSizes, tasks: Sequence[str] = CAPTIONING) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the YAML and the BERT JSON of the checkpoint."""
    yaml = {
        "tasks": list(tasks),
        "caption_states": "image",
        "image_res": sizes.image_size,
        "clip_name": "ViT-B-16",
        "clip_vision_width": sizes.vision_width,
        "clip_vision_layers": sizes.vision_layers,
        "clip_vision_patch_size": sizes.patch_size,
        "beam_size": BEAMS,
        "min_length": TOKENS,
        "max_length": TOKENS,
    }
    bert = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "hidden_act": "gelu",
        "intermediate_size": sizes.intermediate_size,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.max_positions,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "num_hidden_layers": 6,
        "text_encoder_layers": 6,
        "fusion_layers": 6,
        "stride_layer": 3,
        "text_decode_layers": sizes.decoder_layers,
    }
    return yaml, bert


def write_checkpoint(folder: Path, sizes: ModelSizes, seed: int = 0, tasks: Sequence[str] = CAPTIONING) -> Path:
    """Write the checkpoint into `folder` and return it. The weights come last: a folder with them is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    yaml, bert = documents(sizes, tasks)
    # JSON is YAML, and needs no escaping of ours.
    (folder / "config.yaml").write_text(json.dumps(yaml, indent=1) + "\n")
    (folder / "config_bert.json").write_text(json.dumps(bert, indent=1) + "\n")
    (folder / "vocab.txt").write_text("\n".join(vocabulary(sizes.vocab_size)) + "\n")
    network = MPlug(read_config(folder / "config.yaml", folder / "config_bert.json"))
    network.initialise(seed)
    unfinished = folder / "model.partial"
    save_weights(network, unfinished)
    unfinished.rename(folder / "model.safetensors")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="scratch: not to be committed")
    parser.add_argument("--preset", choices=PRESETS, default="base", help="how large (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=CAPTIONING,
        metavar="TASK",
        help="what it is for (default: image-captioning)",
    )
    options = parser.parse_args()
    write_checkpoint(options.output, PRESETS[options.preset].sizes, options.seed, options.tasks)
    megabytes = (options.output / "model.safetensors").stat().st_size / 1e6
    print(
        f"{options.output}: {megabytes:.0f} MB of weights; build it with: "
        f"python builders/build.py {options.output} --output DIR"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
