#!/usr/bin/env python3
"""Record which keys and shapes the published models have at each published configuration.

  git clone https://github.com/X-PLUG/mPLUG published
  git clone https://github.com/modelscope/modelscope
  reference/bin/python tests/parity/make_layouts.py published modelscope tests/parity/data/layouts.json

with the environment of `make_cases.py`. Models are made without memory for their weights, so seconds suffice for the
largest. Per configuration: the values of YAML and BERT JSON that sizes depend on, how many keys there are, and the
SHA-256 of the sorted lines `key dtype shape`. `test_layouts.py` holds `builders/published_layout.py` against it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
import tempfile
import types
from pathlib import Path
from unittest.mock import MagicMock

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from published_code import Published, _clip
from published_modelscope import ModelScope

from builders.random_checkpoint import find_bert_config, modelscope_document, task_of

CLASSES = {
    "image-captioning": "caption_mplug",
    "video-captioning": "caption_mplug_vatex",
    "visual-question-answering": "vqa_mplug",
    "video-question-answering": "vqa_mplug",
    "image-text-retrieval": "retrieval_mplug",
    "video-text-retrieval": "retrieval_mplug",
    "visual-grounding": "grounding_mplug",
}
#: Of CLIP as OpenAI published it, which the authors load by name and ModelScope's YAMLs spell out.
CLIP = {
    "ViT-B-16": {"clip_embed_dim": 512, "clip_vision_layers": 12, "clip_vision_width": 768,
                 "clip_vision_patch_size": 16, "clip_transformer_width": 512, "clip_transformer_heads": 8},
    "ViT-L-14": {"clip_embed_dim": 768, "clip_vision_layers": 24, "clip_vision_width": 1024,
                 "clip_vision_patch_size": 14, "clip_transformer_width": 768, "clip_transformer_heads": 12},
}  # fmt: skip
TEXT_TOWER = {"clip_image_resolution": 224, "clip_context_length": 77, "clip_vocab_size": 49408,
              "clip_transformer_layers": 12}  # fmt: skip
#: What sizes depend on; the rest of a published file is about training.
KEPT = ("clip_name", "image_res", "vision_width", "distill", "embed_dim", "queue_size", "temp", "bert_config")


class Vocabulary:
    """Stands in for a tokenizer: the ids of BERT's unused tokens, and its size."""

    pad_token_id = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(input_ids=[101, 102])

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return list(range(344, 344 + len(tokens)))


def described(model: torch.nn.Module) -> dict[str, object]:
    lines = sorted(f"{key} {value.dtype} {list(value.shape)}" for key, value in model.state_dict().items())
    return {"keys": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def of_authors(published: Published, path: Path) -> dict[str, object]:
    """What the authors' class has at one of their YAMLs."""
    task = task_of(path)
    config, bert = yaml.safe_load(path.read_text()), find_bert_config(path)
    sizes = {**config, **CLIP[config["clip_name"]], **TEXT_TOWER, "bert_config": str(bert)}
    sizes |= {"beam_size": 5, "min_length": 1, "max_length": 10, "text_encoder": "", "text_decoder": ""}
    module = importlib.import_module(f"models.model_{CLASSES[task]}")
    vocabulary = Vocabulary(json.loads(bert.read_text())["vocab_size"])
    # The box tokens' ids are computed with, so grounding needs memory for its weights.
    with torch.device("cpu" if task == "visual-grounding" else "meta"):
        module.initialize_clip = lambda _: (_clip(sizes), None)
        model = module.MPLUG(config=sizes, tokenizer=vocabulary)
    kept = {key: config[key] for key in KEPT if key in config}
    return {
        "name": path.stem,
        "layout": "authors",
        "task": task,
        "yaml": kept,
        "bert": bert_of(bert),
        **described(model),
    }


def of_modelscope(modelscope: ModelScope, path: Path, name: str, vocab_size: int) -> dict[str, object]:
    """What ModelScope's class has in a directory of its layout, at the sizes of a YAML of the authors."""
    task = task_of(path)
    bert = {**json.loads(find_bert_config(path).read_text()), "vocab_size": vocab_size}
    document = {**modelscope_document(yaml.safe_load(path.read_text()), task)}
    document |= CLIP[document["clip_name"]] | TEXT_TOWER
    with tempfile.TemporaryDirectory() as scratch, torch.device("meta"):
        folder = Path(scratch)
        (folder / "config.yaml").write_text(yaml.safe_dump(document))
        (folder / "config_bert.json").write_text(json.dumps(bert))
        modelscope.modeling.BertTokenizer = MagicMock()
        model = modelscope.model(folder, weights=False)
        kept = bert_of(folder / "config_bert.json")
    yaml_kept = {key: document[key] for key in (*KEPT, "task", *CLIP["ViT-B-16"], *TEXT_TOWER) if key in document}
    return {"name": name, "layout": "modelscope", "task": task, "yaml": yaml_kept, "bert": kept, **described(model)}


def bert_of(path: Path) -> dict[str, object]:
    unsized = ("architectures", "gradient_checkpointing", "use_cache", "initializer_range", "add_cross_attention")
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in unsized}


def main() -> int:
    """Write one entry per configuration that has a published class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("authors", type=Path, help="a clone of X-PLUG/mPLUG")
    parser.add_argument("modelscope", type=Path, help="a clone of modelscope/modelscope")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    published, modelscope = Published(options.authors), ModelScope(options.modelscope)
    configs = options.authors / "configs"
    entries = [of_authors(published, path) for path in sorted(configs.glob("*.yaml")) if "pretrain" not in path.stem]
    for yaml_name, name, vocab_size in (
        ("caption_mplug_base", "mplug_image-captioning_coco_base_en", 30522),
        ("caption_mplug_large", "mplug_image-captioning_coco_large_en", 30522),
        ("caption_mplug_base", "mplug_image-captioning_coco_base_zh", 21128),
        ("vqa_mplug_base", "mplug_visual-question-answering_coco_base_zh", 21128),
        ("vqa_mplug_large", "mplug_visual-question-answering_coco_large_en", 30522),
        ("retrieval_flickr30k_mplug_large", "mplug_image-text-retrieval_flickr30k_large_en", 30522),
    ):
        entries.append(of_modelscope(modelscope, configs / f"{yaml_name}.yaml", name, vocab_size))
    options.output.write_text(json.dumps(entries, indent=1) + "\n")
    for entry in entries:
        print(f"{entry['name']}: {entry['keys']} keys")
    return 0


if __name__ == "__main__":
    sys.exit(main())
