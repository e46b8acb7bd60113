#!/usr/bin/env python3
"""Make reference cases of training: a batch, and the losses and gradients that the authors' code computes on it.

  git clone https://github.com/X-PLUG/mPLUG published
  python -m venv reference && reference/bin/pip install torch "transformers==4.30.2" pyyaml pillow
  reference/bin/python tests/parity/make_training_cases.py published tests/parity/data/training --seed 5

One case a task: the batch and the losses as JSON beside the weights of a golden case. Of every gradient two numbers
are kept, its norm and its product with a random direction (`direction`), which differs as soon as one entry does.
Models are in evaluation mode, so that nothing is dropped out; hard negatives are the likeliest instead of drawn
(`likeliest`). `test_training_gradients.py` holds the objectives against them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from published_code import Published, load_weights

DATA = Path(__file__).parent / "data"
BATCH = 4
#: What the published models have and their loss does not need, or makes itself.
UNUSED = {"grounding": ("prefix_ids", "target_ids", "bbox_prob_mask", "vision_proj.", "text_proj.")}


def direction(index: int, size: int) -> torch.Tensor:
    """Return the random direction that gradient number `index`, of so many entries, is multiplied with."""
    return torch.from_numpy(np.random.RandomState(index).randn(size).astype(np.float32))


def likeliest(chances: torch.Tensor, count: int, **_: object) -> torch.Tensor:
    """Stand in for `torch.multinomial`: the likeliest entry of each row."""
    return chances.argmax(-1, keepdim=True)


def pixels(random: np.random.RandomState) -> list:
    """Return `[B, 3, 7, 7]` coarse pixel values, quarters."""
    return random.randint(-8, 9, (BATCH, 3, 7, 7)).tolist()


def full_pixels(coarse: list, side: int) -> torch.Tensor:
    """Return the pixel values that coarse ones stand for: blown up to `[B, 3, R, R]`."""
    values = torch.tensor(coarse, dtype=torch.float32) / 4
    return torch.nn.functional.interpolate(values, (side, side), mode="nearest")


def texts(random: np.random.RandomState, tokens: int, longest: int, count: int) -> list[list[int]]:
    """Return rows of ids from [CLS] to [SEP], padded with 0 to the longest."""
    rows = [[101, *random.randint(104, tokens, random.randint(2, longest + 1)).tolist(), 102] for _ in range(count)]
    width = max(map(len, rows))
    return [row + [0] * (width - len(row)) for row in rows]


def encoding(ids: list[list[int]]) -> SimpleNamespace:
    """Return what the published tokenizer would."""
    tensor = torch.tensor(ids)
    return SimpleNamespace(input_ids=tensor, attention_mask=(tensor != 0).long())


def caption(model, batch: dict, side: int) -> dict[str, torch.Tensor]:
    """`model_caption_mplug.py`: the loss as `caption_mplug.py` takes it."""
    return {"caption": model(full_pixels(batch["pixels"], side), None, encoding(batch["texts"]), train=True).mean()}


def vqa(model, batch: dict, side: int) -> dict[str, torch.Tensor]:
    """`model_vqa_mplug.py`, without momentum copies, which have no effect there."""
    loss = model(
        full_pixels(batch["pixels"], side), encoding(batch["texts"]), encoding(batch["answers"]),
        k=batch["answers of each"], weights=torch.tensor(batch["weights"]), train=True,
    )  # fmt: skip
    return {"answer": loss}


def retrieval(model, batch: dict, side: int) -> dict[str, torch.Tensor]:
    """`model_retrieval_mplug.py` in one process; the queue as the batch has it."""
    module = sys.modules[type(model).__module__]
    module.concat_all_gather = lambda tensor: tensor
    batch["temperature"] = model.temp.item()
    model.image_queue[:] = torch.nn.functional.normalize(torch.tensor(batch["image queue"]).T, dim=0)
    model.text_queue[:] = torch.nn.functional.normalize(torch.tensor(batch["text queue"]).T, dim=0)
    drawn, torch.multinomial = torch.multinomial, likeliest
    try:
        contrast, matching = model(
            full_pixels(batch["pixels"], side), encoding(batch["texts"]), batch["alpha"], torch.tensor(batch["ids"])
        )
    finally:
        torch.multinomial = drawn
    return {"contrast": contrast, "matching": matching}


def grounding(model, batch: dict, side: int) -> dict[str, torch.Tensor]:
    """`model_grounding_mplug.py`, whose side of 336 pixels is replaced by the checkpoint's."""
    model.config["image_res"] = side
    model.target_ids = model.target_ids[: side + 1]
    model.bbox_prob_mask[:] = -10000.0
    model.bbox_prob_mask[model.target_ids[0] : model.target_ids[-1] + 1] = 0.0
    ids = torch.tensor(batch["texts"])
    text = SimpleNamespace(tensors=ids, mask=(ids != 0).long())
    boxes = torch.tensor(batch["boxes"], dtype=torch.float32) / side
    found = model(SimpleNamespace(tensors=full_pixels(batch["pixels"], side)), text, {"targets": boxes})
    return {"box": found["loss_seq"]}


def grounding_model(published: Published, config: dict, folder: Path) -> torch.nn.Module:
    """Return the published grounding model; what it imports beside PyTorch is replaced or written out."""
    for name in ("turtle", "mmdet", "mmdet.models", "mmdet.models.losses", "matplotlib", "matplotlib.transforms"):
        sys.modules.setdefault(name, MagicMock(name=name, __path__=[]))
    einops = types.ModuleType("einops")
    einops.repeat = lambda tensor, _, B: tensor.expand(B, -1)
    sys.modules["einops"] = einops
    boxes = types.ModuleType("torchvision.ops.boxes")
    boxes.box_area = lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    sys.modules |= {"torchvision.ops": MagicMock(name="ops", __path__=[]), "torchvision.ops.boxes": boxes}
    module = importlib.import_module("models.model_grounding_mplug")
    clip = importlib.import_module("published_code")._clip
    module.initialize_clip = lambda _: (clip(config), None)
    config = {**config, "bert_config": str(folder / "config_bert.json")}
    return module.MPLUG(config=config, tokenizer=published.tokenizer(folder)).eval()


def batch_of(task: str, config: dict, bert: dict, random: np.random.RandomState) -> dict:
    """Return the batch of a task, as JSON."""
    tokens = bert["vocab_size"]
    batch: dict = {"pixels": pixels(random), "texts": texts(random, tokens, 9, BATCH)}
    if task == "vqa":
        counts = [1, 3, 2, 1]
        batch |= {"answers of each": counts, "answers": texts(random, tokens, 4, sum(counts))}
        batch["weights"] = [round(float(weight), 3) for weight in random.uniform(0.1, 1.0, sum(counts))]
    if task == "retrieval":
        batch |= {"ids": [3, 7, 3, 9], "alpha": 0.25}
        for name in ("image queue", "text queue"):
            batch[name] = random.randn(config["queue_size"], config["embed_dim"]).round(2).tolist()
    if task == "grounding":
        side = config["image_res"]
        places = [[28, 20, 20, 30], [14, 40, 10, 12], [30, 30, 50, 44], [44, 10, 16, 18]]
        quantised = (torch.tensor(places, dtype=torch.float32) / side * side).floor().long().tolist()
        assert quantised == places, "boxes that fall into their own bins, whichever way they are rounded"
        batch["boxes"] = places
    return batch


TASKS = {
    "caption": ("caption", caption),
    "vqa": ("vqa", vqa),
    "retrieval": ("retrieval", retrieval),
    "grounding": ("grounding", grounding),
}


def main() -> int:
    """Write a case a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="of github.com/X-PLUG/mPLUG")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    arguments = parser.parse_args()
    published = Published(arguments.clone)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for task in arguments.task:
        case, losses_of = TASKS[task]
        folder = DATA / case
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config |= {"distill": task == "retrieval"}
        bert = json.loads((folder / "config_bert.json").read_text())
        if task == "grounding":
            model = grounding_model(published, config, folder)
        else:
            model = published.model({"caption": "caption_mplug"}.get(task, f"{task}_mplug"), config, folder)
        weights = next(path for path in folder.glob("*") if path.suffix in (".bin", ".pth"))
        load_weights(model, weights, unused=UNUSED.get(task, ()))
        if task == "retrieval":
            model.copy_params()
        batch = batch_of(task, config, bert, np.random.RandomState(arguments.seed))
        losses = losses_of(model, batch, config["image_res"])
        sum(losses.values()).backward()
        gradients = {}
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if parameter.grad is not None:
                gradient = parameter.grad.flatten()
                product = (gradient @ direction(index, len(gradient))).item()
                gradients[name] = [gradient.norm().item(), product, index]
        document = {"checkpoint": case, "batch": batch, "losses": {k: v.item() for k, v in losses.items()}}
        (arguments.output / f"{task}.json").write_text(json.dumps({**document, "gradients": gradients}) + "\n")
        print(task, document["losses"], f"{len(gradients)} gradients")
    return 0


if __name__ == "__main__":
    sys.exit(main())
