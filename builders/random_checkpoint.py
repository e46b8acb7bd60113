"""Make a checkpoint of random weights from a published YAML: the files, keys and sizes of the real one.

    python builders/random_checkpoint.py mPLUG/configs/vqa_mplug_large.yaml --output build/vqa-large
    python builders/random_checkpoint.py mPLUG/configs/caption_mplug_base.yaml --layout modelscope \
        --vocab-size 21128 --output build/caption-base-zh

Whoever is about to download weights can rehearse their size, the time and memory of a build, and serving. CONFIG may
lie in a clone of the authors' repository, where the BERT JSON that it names is found, or anywhere with --bert-config.
"""

from __future__ import annotations

import argparse
import json
import mmap
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from torch import Tensor

from builders.published_layout import LAYOUTS, PRETRAINING, TASKS, Layout, layout_of
from mplug.config import CLIP_SIZES, DEFAULT_GENERATION, ConfigError, bert_config_name, read_config

#: Task of a YAML of the authors, by how its file's name begins: each is named after the script that reads it.
TASK_OF_NAME = {
    "caption_": "image-captioning",
    "videocap_": "video-captioning",
    "vqa_": "visual-question-answering",
    "videoqa_": "video-question-answering",
    "retrieval_msrvtt": "video-text-retrieval",
    "retrieval_": "image-text-retrieval",
    "grounding_": "visual-grounding",
    "pretrain_": PRETRAINING,
}
#: Of BERT's English vocabulary: the ids of its special tokens; all others up to 998 are called unused.
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
FIRST_WORD = 999
STD = 0.02  # of the random weights, which is BERT's `initializer_range`


class RehearsalError(ValueError):
    """No checkpoint can be made of these files; the message says why."""


def make_checkpoint(
    config: Path,
    output: Path,
    *,
    bert_config: Path | None = None,
    layout: str = "authors",
    task: str | None = None,
    vocabulary: Path | None = None,
    vocab_size: int | None = None,
    image_size: int | None = None,
    half: bool = False,
    seed: int = 0,
) -> tuple[str, Layout]:
    """Write the files of a checkpoint into `output`; return its task and its layout.

    Raises RehearsalError, or ConfigError for files that cannot be read.
    """
    task = task or task_of(config)
    bert_config = bert_config or find_bert_config(config)
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    bert = json.loads(bert_config.read_text(encoding="utf-8"))
    if vocab_size is not None:
        bert["vocab_size"] = vocab_size
    if image_size is not None:
        document["image_res"] = image_size
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise RehearsalError(f"{output} is not empty; name another folder")
    changed = vocab_size is not None or image_size is not None
    if layout == "modelscope":
        names = ("config.yaml", "config_bert.json", "pytorch_model.bin")
        document = modelscope_document(document, task)
        changed = True
        (output / "configuration.json").write_text(json.dumps({"framework": "pytorch", "task": task}) + "\n")
    else:
        names = (config.name, bert_config.name, f"{config.stem}.pth")
    if changed:
        (output / names[0]).write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        (output / names[1]).write_text(json.dumps(bert, indent=1) + "\n", encoding="utf-8")
    else:  # as they were published, to the last byte
        shutil.copyfile(config, output / names[0])
        shutil.copyfile(bert_config, output / names[1])
    # A checkpoint of pre-training serves every task; its sizes are the same for all of them.
    read = read_config(output / names[0], output / names[1], task=TASKS[0] if task == PRETRAINING else task)
    if vocabulary is not None:
        shutil.copyfile(vocabulary, output / "vocab.txt")
    else:
        (output / "vocab.txt").write_text("\n".join(vocabulary_of(read.text.vocab_size)) + "\n", encoding="utf-8")
    entries = layout_of(read, document, task, layout)
    write_weights(entries, output / names[2], half=half, seed=seed)
    return task, entries


def task_of(config: Path) -> str:
    """Return what a YAML is for: as it says, or as the authors named it. Raises RehearsalError where neither does."""
    try:
        said = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RehearsalError(f"{config}: cannot be read: {' '.join(str(error).split())}") from None
    named = said.get("task") if isinstance(said, dict) else None
    found = named or next((task for start, task in TASK_OF_NAME.items() if config.name.startswith(start)), None)
    if found not in TASKS:
        reason = f"names the task {found!r}" if found else "names no task, nor does its file's name"
        raise RehearsalError(f"{config}: {reason}; pass --task with one of {', '.join(TASKS)}")
    return found


def find_bert_config(config: Path) -> Path:
    """Return the BERT JSON that a YAML names, which the authors have beside it. Raises RehearsalError."""
    name = bert_config_name(config)
    if name is None:
        raise RehearsalError(f"{config}: names no bert_config; pass --bert-config")
    path = config.parent / name
    if not path.is_file():
        raise RehearsalError(f"{config}: names the bert_config {name}, and {path} is not there; pass --bert-config")
    return path


def modelscope_document(document: Mapping[str, object], task: str) -> dict[str, object]:
    """Return the YAML of ModelScope's layout: the authors', with its task, lengths and CLIP's sizes spelt out."""
    beams, least, most = DEFAULT_GENERATION.get(task, (5, 1, 10) if "captioning" not in task else (5, 8, 25))
    own = {"task": task, "beam_size": beams, "min_length": least, "max_length": most}
    sizes = CLIP_SIZES.get(str(document.get("clip_name")), {})
    return {**own, **sizes, **document, "bert_config": "config_bert.json"}


def vocabulary_of(size: int) -> list[str]:
    """Return a vocabulary of `size` tokens in BERT's order: unused ones, special ones, characters, invented words."""
    unused = iter(range(size))
    known = [SPECIAL.get(index) or f"[unused{next(unused)}]" for index in range(min(FIRST_WORD, size))]
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    characters += [f"##{character}" for character in characters if character.isalnum()]
    characters += [chr(code) for code in range(0x4E00, 0x4E00 + 4000)] if size > 2 * 4000 else []
    syllables = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]
    words = ("".join(parts) for length in (2, 3) for parts in product(syllables, repeat=length))
    rest = [token for token in characters if token not in known]
    return [*known, *rest, *(word for word, _ in zip(words, range(size), strict=False))][:size]


def write_weights(entries: Layout, path: Path, *, half: bool, seed: int) -> None:
    """Write a state dict under `model`, with PyTorch.

    Tensors live in a scratch file until then, not in memory: a large model with its momentum copies has 1.6 billion.
    """
    own = {key: entry for key, entry in entries.items() if not entry.tied}
    dtype = torch.float16 if half else torch.float32
    widths = {key: 8 if entry.whole else dtype.itemsize for key, entry in own.items()}
    sizes = {key: max(1, _count(entry.shape)) * widths[key] for key, entry in own.items()}
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        scratch.truncate(sum(-(-size // 64) * 64 for size in sizes.values()))
        mapped, place = mmap.mmap(scratch.fileno(), 0), 0
        for key, entry in own.items():
            kind = torch.int64 if entry.whole else dtype
            tensor = torch.frombuffer(mapped, dtype=kind, count=_count(entry.shape), offset=place).view(entry.shape)
            _fill(key, tensor, state.get(entry.of), generator)
            state[key] = tensor
            place += -(-sizes[key] // 64) * 64
        state |= {key: state[entry.of] for key, entry in entries.items() if entry.tied}
        torch.save({"model": {key: state[key] for key in entries}}, path)


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _fill(key: str, tensor: Tensor, copied: Tensor | None, generator: torch.Generator) -> None:
    if copied is not None:
        tensor.copy_(copied)
    elif key.endswith("position_ids"):
        tensor.copy_(torch.arange(tensor.shape[1])[None])
    elif not tensor.is_floating_point():
        tensor.fill_(0)
    elif tensor.ndim == 1 and key.endswith("weight"):
        tensor.fill_(1)  # a norm's
    elif tensor.ndim < 2 and key.endswith("bias"):
        tensor.fill_(0)
    else:
        tensor.normal_(std=STD, generator=generator)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML of the authors' repository, or of a ModelScope directory")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the checkpoint, empty")
    parser.add_argument("--bert-config", type=Path, metavar="FILE", help="default: the one that the YAML names")
    parser.add_argument("--layout", choices=LAYOUTS, default="authors", help="default: %(default)s")
    parser.add_argument("--task", choices=TASKS, help="where neither YAML nor its name says it")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="a vocab.txt (default: one of invented words)")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="other than the BERT JSON's; Chinese: 21128")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels, other than the YAML's")
    parser.add_argument("--half", action="store_true", help="weights in half precision")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    settings = {name: value for name, value in vars(options).items() if name not in ("config", "output")}
    try:
        task, entries = make_checkpoint(options.config, options.output, **settings)
    except (RehearsalError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or options.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    count = sum(_count(entry.shape) for entry in entries.values() if not entry.tied)
    size = sum(path.stat().st_size for path in options.output.iterdir())
    print(f"{options.output}: {len(entries):,} tensors, {count / 1e6:,.0f} million numbers, {size / 1e9:.2f} GB")
    wanted = " --task " + ("image-captioning" if task == PRETRAINING else task) if options.layout == "authors" else ""
    print(f"next: python builders/build.py {options.output} --output DIR{wanted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
