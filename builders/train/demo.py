"""Train the demo checkpoint on emoji scenes: all pre-training objectives, then every task at once.

    python builders/train/demo.py --output build/train

A leg is NAME:MINUTES; each continues from the weights before it, the first from `--init` or from nothing.
First the vision encoder learns to name what each patch shows, which scenes of our own tell for free; then the
four objectives of the paper join (arXiv 2205.12005, section 3.3), then captions, questions, boxes, pairs and
judgements all at once. Weights are saved every few minutes. `log.jsonl` holds losses and looks at fixed scenes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from builders.data.emoji_sprites import TRAIN_STYLES
from builders.data.vocabulary import build_vocabulary
from builders.train.answering import answer_loss
from builders.train.captioning import caption_loss, decoder_source
from builders.train.contrastive import ALPHA, ImageTextContrast
from builders.train.demo_batches import SCENE_SIZE, DemoStream, Mixture, normalise, object_patches, scene_tokenizer
from builders.train.demo_look import look
from builders.train.fused_states import token_mask
from builders.train.grounding import grounding_loss
from builders.train.judgement import entail_loss, nlvr_loss
from builders.train.masked_language import MaskedLanguageHead, SpecialIds, masked_language_loss
from builders.train.matching import judged_loss, matching_loss
from builders.train.patch_labelling import ImageLabelling, PatchBoxes, PatchLabelling
from builders.train.prefix_language import prefix_language_loss
from mplug.checkpoint import load_weights, read_state_dict, save_weights
from mplug.config import GenerationConfig, MPlugConfig, TextConfig, VisionConfig
from mplug.network import MPlug

WIDTH = 192
CLASSES = 250
PROMPT = "a picture of"
QUEUE = 4096  # features kept by the contrastive objective
LOG_SECONDS, LOOK_SECONDS = 60, 480
WARM_UP = 100  # steps
TASKS = (
    "image-captioning", "visual-question-answering", "image-text-retrieval", "visual-grounding", "nlvr2",
    "visual-entailment", "video-captioning", "video-question-answering", "video-text-retrieval",
)


@dataclass(frozen=True)
class Leg:
    """One leg of the curriculum."""

    learning_rate: float
    vision_learning_rate: float
    weights: dict[str, float]  #: of the objectives; those that are not named do not run
    batch_size: int = 64
    augmented: float = 0.6  #: share of batches whose sprites are augmented
    kept_patches: int | None = 24  #: work on so many patches, those of objects first
    mixture: Mixture = field(default_factory=Mixture)
    max_groups: int = 2
    max_count: int = 4


LABELS = {"patches": 1.5, "classes": 0.3, "places": 3.0}
PRETRAINING = LABELS | {"words": 0.5, "contrast": 0.5, "matching": 0.5, "masked": 0.5, "prefix": 1.0}
EVERY_TASK = LABELS | {
    "words": 0.5, "contrast": 1.0, "matching": 1.0, "caption": 1.5, "answers": 1.0, "boxes": 1.0, "entailment": 1.0,
    "nlvr": 0.5,
}
LEGS = {
    "sprites": Leg(6e-4, 6e-4, LABELS, augmented=0.3, kept_patches=12, max_groups=1, max_count=1),
    "patches": Leg(6e-4, 6e-4, LABELS),
    "pretrain": Leg(6e-4, 4e-4, PRETRAINING, batch_size=96),
    "tasks": Leg(6e-4, 2e-4, EVERY_TASK, batch_size=72),
    "whole": Leg(2e-4, 1e-4, EVERY_TASK, batch_size=48, augmented=0.4, kept_patches=None),
}


def demo_config(image_size: int, vocab_size: int) -> MPlugConfig:
    """The demo checkpoint's sizes: about 8 M parameters."""
    return MPlugConfig(
        vision=VisionConfig(image_size=image_size, patch_size=16, width=WIDTH, layers=6),
        text=TextConfig(
            vocab_size=vocab_size, hidden_size=WIDTH, intermediate_size=4 * WIDTH, heads=3, max_positions=64,
            type_vocab_size=2, layer_norm_eps=1e-12, dropout=0.0, num_hidden_layers=3, text_encoder_layers=2,
            fusion_layers=3, stride_layer=2, text_decode_layers=3,
        ),
        generation=GenerationConfig(num_beams=5, min_length=2, max_length=24),
        tasks=TASKS,
        embed_dim=128,
        max_text_length=32,
        caption_states="fused",
        prompt=PROMPT,
    )


class DemoModel(nn.Module):
    """The network, and what only training needs."""

    def __init__(self, network: MPlug) -> None:
        super().__init__()
        self.network = network
        self.patches = PatchLabelling(WIDTH, CLASSES)
        self.classes = ImageLabelling(WIDTH, CLASSES)
        self.places = PatchBoxes(WIDTH)
        self.masked = MaskedLanguageHead(network.config.text)
        self.contrast = ImageTextContrast(network, queue_size=QUEUE)


class Losses:
    """The objectives over one batch, by name."""

    def __init__(self, model: DemoModel) -> None:
        self.model = model
        tokenizer = scene_tokenizer()
        self.special = SpecialIds(tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        self.prompt_ids = torch.tensor([tokenizer.cls_id, *tokenizer.pieces(PROMPT), tokenizer.sep_id])

    def of(self, batch: dict[str, Tensor], leg: Leg, progress: float = 1.0) -> dict[str, Tensor]:
        """Losses of the objectives that the leg names, unweighted.

        `progress`: share of the leg that is over; the momentum encoders' say in the contrast grows with it.
        """
        model, network = self.model, self.model.network
        pixels, labels = normalise(batch["images"]), batch["labels"].flatten(1)
        kept = None if leg.kept_patches is None else object_patches(batch["labels"], leg.kept_patches)
        states = network.vision_encoder(pixels, kept)
        losses = {"patches": model.patches(states, labels if kept is None else labels.gather(1, kept))}
        boxes = batch["boxes"].flatten(1, 2)
        if kept is not None:
            boxes = boxes.gather(1, kept[:, :, None].expand(-1, -1, 4))
        losses["places"] = model.places(states, boxes)
        losses["classes"] = model.classes(states, batch["labels"])
        wanted = leg.weights
        texts, mixture = batch["texts"], leg.mixture
        if "contrast" in wanted:
            losses |= self._aligned(states, pixels, kept, batch, mixture, ALPHA * progress)
        if "masked" in wanted:
            some = _some(states, mixture.masked)
            losses["masked"] = masked_language_loss(
                network, model.masked, states, texts[some], self.special, image_index=some)
        if "prefix" in wanted:
            some = _some(states, mixture.prefixes)
            losses["prefix"] = prefix_language_loss(
                network, states, texts[some], self.special.cls_id, self.special.sep_id, image_index=some)
        if "caption" in wanted:
            some = _some(states, mixture.captions)
            source = decoder_source(network, states[some], self.prompt_ids)
            losses["caption"] = caption_loss(network, source, batch["captions"][some])
        if "answers" in wanted:
            losses["answers"] = answer_loss(
                network, states, batch["question_ids"], None, batch["answer_ids"], image_index=batch["question_image"])
        if "boxes" in wanted:
            losses["boxes"] = grounding_loss(
                network, states, batch["expression_ids"], None, batch["box_ids"], batch["expression_image"])
        if "entailment" in wanted:
            losses["entailment"] = entail_loss(
                network, states, batch["hypothesis_ids"], None, batch["entail_label"], batch["hypothesis_image"])
        if "nlvr" in wanted:
            losses["nlvr"] = nlvr_loss(
                network, states, batch["statement_ids"], None, batch["statement_image"], batch["statement_other"],
                batch["nlvr_label"])
        return losses

    def _aligned(self, states: Tensor, pixels: Tensor, kept: Tensor | None, batch: dict[str, Tensor],
                 mixture: Mixture, alpha: float) -> dict[str, Tensor]:
        """Contrast, and matching with the negatives that the contrast finds hard and those wrong in one thing."""
        network, every = self.model.network, states
        part = slice(mixture.contrasted)  # the teacher's vision encoder costs a third of the network's
        states, pixels, texts, ids = states[part], pixels[part], batch["texts"][part], batch["text_id"][part]
        kept = None if kept is None else kept[part]
        mask = token_mask(texts)
        text_states = network.text_encoder(texts, mask)
        contrast = self.model.contrast(
            network, states, text_states, pixels, texts, mask, kept=kept, ids=ids, alpha=alpha)
        self.model.contrast.enqueue(contrast)
        some = _some(states, mixture.matches)
        similar = [matrix[some][:, some] for matrix in (contrast.image_to_text, contrast.text_to_image)]
        matching = matching_loss(network, states[some], text_states[some], mask[some], *similar, ids=ids[some])
        wrong, texts = batch["wrong_ids"], batch["texts"]
        # As many right ones beside those wrong in one thing, so that "wrong" is no safe guess.
        right = texts[batch["wrong_image"]]
        length = max(wrong.shape[1], right.shape[1])
        both = torch.cat([functional.pad(rows, (0, length - rows.shape[1])) for rows in (wrong, right)])
        labels = torch.arange(2).repeat_interleave(len(wrong))
        judged = judged_loss(network, every, both, labels, batch["wrong_image"].repeat(2))
        words = self.model.patches.words(text_states, batch["word_labels"][part])
        return {"contrast": contrast.loss, "matching": (matching + judged) / 2, "words": words}


def _some(states: Tensor, count: int) -> Tensor:
    """Indices of some images of a batch, `[count]`."""
    return torch.randperm(len(states))[:count]


class Trainer:
    """Runs legs, measures, saves."""

    def __init__(self, output: Path, seed: int) -> None:
        self.output = output
        output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        network = MPlug(demo_config(SCENE_SIZE, len(build_vocabulary())))
        network.initialise(seed)
        self.model = DemoModel(network)
        self.losses = Losses(self.model)
        self.samples, self.seed = 0, seed
        self.started = time.time()

    def start_from(self, weights: Path) -> None:
        """Take the parts that a weights file has; the others stay as they were initialised."""
        stored = read_state_dict(weights)
        network = self.model.network
        own = network.state_dict()
        taken = {name: tensor for name, tensor in stored.items() if name in own and own[name].shape == tensor.shape}
        self.log(init=str(weights.name), taken=len(taken), fresh=sorted({n.split(".")[0] for n in own.keys() - taken}))
        load_weights(network, own | taken, source=weights)
        self.model.contrast.copy_weights(network)
        heads = weights.with_name("heads.pt")
        if heads.exists():
            self.model.load_state_dict(torch.load(heads, weights_only=True), strict=False)

    def log(self, **record: object) -> None:
        record = {"minutes": round((time.time() - self.started) / 60, 2), "samples": self.samples, **record}
        with (self.output / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    def run(self, name: str, minutes: float, number: int) -> None:
        """Train one leg for a span of time, cosine over that span."""
        leg = LEGS[name]
        self.model.train()
        groups = parameter_groups(self.model, leg)
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        stream = DataLoader(
            DemoStream(TRAIN_STYLES, leg.batch_size, leg.mixture, augmented=leg.augmented, seed=self.seed + number,
                       max_groups=leg.max_groups, max_count=leg.max_count),
            batch_size=None, num_workers=1, prefetch_factor=4,
        )
        begun = last_log = last_look = time.time()
        sums: dict[str, float] = {}
        steps = 0
        for step, batch in enumerate(stream, start=1):
            progress = (time.time() - begun) / (60 * minutes)
            if progress >= 1:
                break
            factor = min(1.0, step / WARM_UP) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * factor
            with torch.autocast("cpu", torch.bfloat16):
                losses = self.losses.of(batch, leg, progress)
                total = sum(leg.weights[key] * losses[key] for key in leg.weights)
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            for group in groups:  # apart, so that a task's wild start does not still the vision encoder
                torch.nn.utils.clip_grad_norm_([p for p in group["params"] if p.grad is not None], 1.0)
            optimiser.step()
            if "contrast" in leg.weights:
                self.model.contrast.update_momentum(self.model.network)
            self.samples += len(batch["images"])
            steps += 1
            for key in leg.weights:
                sums[key] = sums.get(key, 0.0) + losses[key].item()
            if time.time() - last_log > LOG_SECONDS:
                means = {key: round(value / steps, 3) for key, value in sums.items()}
                rate = round(steps * leg.batch_size / (time.time() - last_log))
                self.log(leg=name, step=step, per_second=rate, **means)
                sums, steps, last_log = {}, 0, time.time()
            if time.time() - last_look > LOOK_SECONDS:
                self.look(name)
                last_look = time.time()
        self.look(name)

    def look(self, name: str) -> None:
        """Save, then measure on fixed scenes."""
        self.save()
        tasks = any(key not in PRETRAINING for key in LEGS[name].weights)
        self.log(leg=name, look=look(self.model.network, self.model.patches, tasks=tasks))

    def save(self) -> None:
        """Write the weights; a kill between two writes leaves the earlier file whole."""
        unfinished = self.output / "unfinished.safetensors"
        save_weights(self.model.network, unfinished, dtype=torch.float32)
        os.replace(unfinished, self.output / "model.safetensors")
        heads = {name: tensor for name, tensor in self.model.state_dict().items() if not name.startswith("network.")}
        torch.save(heads, self.output / "heads.pt")


def parameter_groups(model: DemoModel, leg: Leg) -> list[dict]:
    """AdamW groups: the vision encoder at a learning rate of its own, weight decay on matrices alone."""
    vision = {id(parameter) for parameter in model.network.vision_encoder.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {
            "params": [p for p in trained if (id(p) in vision) == seeing and (p.ndim > 1) == matrix],
            "weight_decay": 0.05 if matrix else 0.0, "base_lr": rate, "lr": 0.0,
        }
        for seeing, rate in ((True, leg.vision_learning_rate), (False, leg.learning_rate))
        for matrix in (True, False)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--legs", default="sprites:25,patches:40,pretrain:30,tasks:90,whole:20",
                        help=f"NAME:MINUTES,… of {', '.join(LEGS)} (default: %(default)s)")
    parser.add_argument("--init", type=Path, help="weights to start from, a .safetensors file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trainer = Trainer(options.output, options.seed)
    if options.init:
        trainer.start_from(options.init)
    for number, leg in enumerate(options.legs.split(","), start=1):
        name, minutes = leg.split(":")
        trainer.run(name, float(minutes), number)


if __name__ == "__main__":
    main()
