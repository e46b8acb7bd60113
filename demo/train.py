"""Train the demo checkpoint on emoji scenes: all pre-training objectives, then every task at once.

    python demo/train.py --output build/train
    torchrun --nproc-per-node 2 demo/train.py --output build/train    # twice the batch on two cores

A leg is NAME:MINUTES; each continues from the weights before it, the first from `--init` or from nothing.
First the vision encoder learns to name what each patch shows, which scenes of our own tell for free; then the
objectives of pre-training join (arXiv 2205.12005, section 3.3), with words that learn to look at what they name; then
captions, questions, boxes, pairs and judgements all at once. Weights are saved every few minutes. `log.jsonl`
holds losses and looks at fixed scenes.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from builders.train.distributed import mean_gradients, process_group, rank, world_size
from builders.train.fused_states import FusedStates, mean_over_tokens, token_losses, token_mask
from builders.train.objectives.captioning import caption_loss, decoder_source
from builders.train.objectives.contrastive import ALPHA, Contrast, ImageTextContrast
from builders.train.objectives.grounding import BoxIds, near_boxes
from builders.train.objectives.masked_language import MaskedLanguageHead, SpecialIds, masked_language_loss
from builders.train.objectives.matching import hard_negatives
from builders.train.objectives.prefix_language import prefix_language_loss
from demo.scenes.sprites import TRAIN_STYLES
from demo.texts.vocabulary import build_vocabulary
from demo.training.batches import (
    MOST_COUNTED,
    SCENE_SIZE,
    DemoStream,
    Mixture,
    normalise,
    object_patches,
    scene_tokenizer,
)
from demo.training.look import look
from demo.training.patch_labelling import ImageLabelling, PatchBoxes, PatchCounts, PatchLabelling
from demo.training.word_grounding import GuidedLooks, NamedThings
from mplug.checkpoint import load_weights, read_state_dict, save_weights
from mplug.config import GenerationConfig, MPlugConfig, TextConfig, VisionConfig
from mplug.network import MPlug

WIDTH = 192
CLASSES = 250
PROMPT = "a picture of"
QUEUE = 4096  # features kept by the contrastive objective
LOG_SECONDS, LOOK_SECONDS = 60, 600
WARM_UP = 100  # steps
TEXTS_SAY = 0.3  # share of their gradients that texts send through the image states: labels teach the eye, texts less
NEAR_BINS = 2.0  # pixels that a box token may be off and still be nearly right
PAIRS = Mixture(questions=0, expressions=0, hypotheses=0, statements=0)  # images and captions alone
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


@dataclass(frozen=True)
class Leg:
    """One leg of the curriculum."""

    learning_rate: float
    vision_learning_rate: float
    weights: dict[str, float]  #: of the objectives; those that are not named do not run
    batch_size: int = 64
    augmented: float = 0.6  #: share of batches whose sprites are augmented
    kept_patches: int | None = 24  #: work on so many patches, those of objects first
    mixture: Mixture | None = field(default_factory=Mixture)
    max_groups: int = 2
    max_count: int = 4


LABELS = {"patches": 2.0, "classes": 1.0, "places": 20.0, "counts": 0.5}
WORDS = {"words": 0.5, "looks": 0.5, "named": 1.0, "contrast": 1.0, "matching": 1.0}
PRETRAINING = LABELS | WORDS | {"masked": 0.5, "prefix": 1.0}
EVERY_TASK = (
    LABELS
    | WORDS
    | {
        "caption": 1.5,
        "answers": 1.5,
        "boxes": 2.0,
        "pointed": 0.5,
        "entailment": 1.0,
        "nlvr": 1.0,
    }
)
LEGS = {
    "sprites": Leg(6e-4, 6e-4, LABELS, augmented=0.3, kept_patches=12, mixture=None, max_groups=1, max_count=1),
    "patches": Leg(6e-4, 6e-4, LABELS, mixture=None),
    "pretrain": Leg(6e-4, 4e-4, PRETRAINING, batch_size=96, mixture=PAIRS),
    "tasks": Leg(7e-4, 3e-4, EVERY_TASK, batch_size=80),
    # What it is served with: patches left out make objects look larger, and more of their kind.
    "whole": Leg(5e-4, 2.2e-4, EVERY_TASK, batch_size=56, augmented=0.5, kept_patches=None),
}


def demo_config(image_size: int, vocab_size: int) -> MPlugConfig:
    """The demo checkpoint's sizes: about 8 M parameters."""
    return MPlugConfig(
        vision=VisionConfig(image_size=image_size, patch_size=16, width=WIDTH, layers=6),
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            heads=3,
            max_positions=64,
            type_vocab_size=2,
            layer_norm_eps=1e-12,
            dropout=0.0,
            num_hidden_layers=3,
            text_encoder_layers=2,
            fusion_layers=3,
            stride_layer=2,
            text_decode_layers=3,
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
        self.counts = PatchCounts(WIDTH, MOST_COUNTED)
        self.named = NamedThings(WIDTH, MOST_COUNTED)
        self.masked = MaskedLanguageHead(network.config.text)
        self.contrast = ImageTextContrast(network, queue_size=QUEUE)


class Losses:
    """The objectives over one batch, by name."""

    def __init__(self, model: DemoModel) -> None:
        self.model = model
        tokenizer = scene_tokenizer()
        self.special = SpecialIds(tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        self.box_ids = BoxIds.of(tokenizer, SCENE_SIZE)
        self.looks = GuidedLooks(model.network.fusion_encoder)
        self.prompt_ids = torch.tensor([tokenizer.cls_id, *tokenizer.pieces(PROMPT), tokenizer.sep_id])

    def of(self, batch: dict[str, Tensor], leg: Leg, progress: float = 1.0) -> dict[str, Tensor]:
        """Losses of the objectives that the leg names, unweighted.

        `progress`: share of the leg that is over; the momentum encoders' say in the contrast grows with it.
        """
        model, network = self.model, self.model.network
        pixels = normalise(batch["images"])
        kept = None if leg.kept_patches is None else object_patches(batch["labels"], leg.kept_patches)
        states = network.vision_encoder(pixels, kept)
        worked_on = _of_patches(batch["labels"], kept)
        losses = {
            "patches": model.patches(states, worked_on),
            "counts": model.counts(states, _of_patches(batch["counts"], kept)),
            "places": model.places(states, _of_patches(batch["boxes"], kept)),
            "classes": model.classes(states, batch["labels"]),
        }
        wanted, mixture = leg.weights, leg.mixture
        pooled, states = states, states.detach().lerp(states, TEXTS_SAY)
        if mixture is not None:
            self._read_texts(losses, pooled, states, pixels, kept, worked_on, batch, leg, ALPHA * progress)
        if "masked" in wanted:
            some = _some(states, mixture.masked)
            losses["masked"] = masked_language_loss(
                network, model.masked, states, batch["texts"][some], self.special, image_index=some
            )
        if "prefix" in wanted:
            some = _some(states, mixture.prefixes)
            losses["prefix"] = prefix_language_loss(
                network, states, batch["texts"][some], self.special.cls_id, self.special.sep_id, image_index=some
            )
        if "caption" in wanted:
            some = _some(states, mixture.captions)
            source = decoder_source(network, states[some], self.prompt_ids)
            losses["caption"] = caption_loss(network, source, batch["captions"][some])
        return losses

    def _read_texts(
        self,
        losses: dict[str, Tensor],
        pooled: Tensor,
        states: Tensor,
        pixels: Tensor,
        kept: Tensor | None,
        labels: Tensor,
        batch: dict[str, Tensor],
        leg: Leg,
        alpha: float,
    ) -> None:
        """Add the losses of all texts that are fused with an image, in one pass of the encoders over all."""
        model, network, rows = self.model, self.model.network, leg.mixture.rows()
        ids, images = batch["row_ids"], batch["row_image"]
        mask = token_mask(ids)
        texts = network.text_encoder(ids, mask)
        losses["words"] = model.patches.words(texts, batch["row_words"])
        part = rows["captions"]
        # The caption's [CLS] names what the picture's does: a start for the contrast of the two.
        losses["classes"] = losses["classes"] + model.classes(texts[part], batch["labels"][part])
        contrast = model.contrast(
            network,
            pooled[part],
            texts[part],
            pixels[part],
            ids[part],
            mask[part],
            kept=None if kept is None else kept[part],
            ids=batch["text_id"][part],
            alpha=alpha,
        )
        model.contrast.enqueue(contrast)
        losses["contrast"] = contrast.loss
        hard_images, hard_texts = self._hard_pairs(contrast, batch["text_id"][part], leg.mixture.matches)
        order = torch.cat([torch.arange(len(ids)), hard_texts])
        images, mask = torch.cat([images, hard_images]), mask[order]
        fused = FusedStates(*network.fusion_encoder(states[images], texts[order], mask), mask)
        losses["looks"] = self.looks.loss(batch["row_words"], batch["row_image"], labels)
        losses["named"] = model.named(fused.text[: len(ids)], batch["row_counts"], batch["row_boxes"])
        first = fused.text[:, 0]
        judged = torch.cat([first[part], first[rows["wrong"]], first[len(ids) :]])
        right = (torch.arange(len(judged)) < leg.mixture.contrasted).long()
        losses["matching"] = functional.cross_entropy(network.match_head(judged).float(), right)
        if "answers" not in leg.weights:
            return
        losses["answers"] = (
            token_losses(network, self._source(fused, rows["questions"]), batch["answer_ids"]).sum(1).mean()
        )
        box_ids = batch["box_ids"]
        near = near_boxes(box_ids, self.box_ids, network.config.text.vocab_size, NEAR_BINS)
        losses["boxes"] = mean_over_tokens(
            token_losses(network, self._source(fused, rows["expressions"]), box_ids, near, 1.0), box_ids
        )
        places = (box_ids[:, 1:] - self.box_ids.first_bin) / (self.box_ids.bins - 1)
        losses["pointed"] = model.named.pointed(first[rows["expressions"]], places)
        entailed = network.entail_head(first[rows["hypotheses"]]).float()
        losses["entailment"] = functional.cross_entropy(entailed, batch["entail_label"])
        both = torch.cat([first[rows["statements_left"]], first[rows["statements_right"]]], dim=-1)
        losses["nlvr"] = functional.cross_entropy(network.nlvr_head(both).float(), batch["nlvr_label"])

    def _source(self, fused: FusedStates, rows: slice) -> tuple[Tensor, Tensor]:
        """What the decoder reads for some rows."""
        return self.model.network.decoder_input(*(states[rows] for states in fused))

    @staticmethod
    def _hard_pairs(contrast: Contrast, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Images and captions `[count]` that do not belong together, but seem to the contrast."""
        images, wrong_texts = (found[: count // 2] for found in hard_negatives(contrast.image_to_text, ids))
        texts, wrong_images = (found[: count - count // 2] for found in hard_negatives(contrast.text_to_image, ids))
        return torch.cat([images, wrong_images]), torch.cat([wrong_texts, texts])


def _of_patches(values: Tensor, kept: Tensor | None) -> Tensor:
    """Values of all patches, `[B, g, g, …]` → of those that are worked on, `[B, P, …]`."""
    values = values.flatten(1, 2)
    return values if kept is None else values[torch.arange(len(kept))[:, None], kept]


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
        if rank() > 0:
            return
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
            DemoStream(
                TRAIN_STYLES,
                leg.batch_size,
                leg.mixture,
                augmented=leg.augmented,
                seed=self.seed + 10 * number + rank(),
                max_groups=leg.max_groups,
                max_count=leg.max_count,
            ),
            batch_size=None,
            num_workers=1,
            prefetch_factor=4,
            multiprocessing_context="spawn",  # a fork would wait for the threads that OpenCV had at the last look
        )
        begun = last_log = last_look = time.time()
        sums: dict[str, float] = {}
        steps = 0
        progress = 0.0
        for step, batch in enumerate(stream, start=1):
            with torch.autocast("cpu", torch.bfloat16):
                losses = self.losses.of(batch, leg, progress)
                total = sum(leg.weights[key] * losses[key] for key in leg.weights)
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            # Clocks differ: all processes go by their mean, as by their mean gradients.
            progress = mean_gradients(optimiser, (time.time() - begun) / (60 * minutes))
            factor = min(1.0, step / WARM_UP) * max(0.02, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * factor
            for group in groups:  # apart, so that a task's wild start does not still the vision encoder
                torch.nn.utils.clip_grad_norm_([p for p in group["params"] if p.grad is not None], 1.0)
            optimiser.step()
            if "contrast" in leg.weights:
                self.model.contrast.update_momentum(self.model.network)
            self.samples += len(batch["images"]) * world_size()
            steps += 1
            for key in leg.weights:
                sums[key] = sums.get(key, 0.0) + losses[key].item()
            if time.time() - last_log > LOG_SECONDS:
                means = {key: round(value / steps, 3) for key, value in sums.items()}
                rate = round(steps * leg.batch_size * world_size() / (time.time() - last_log))
                self.log(leg=name, step=step, per_second=rate, **means)
                sums, steps, last_log = {}, 0, time.time()
            if time.time() - last_look > LOOK_SECONDS:
                self.look(name)
                last_look = time.time()
            if progress >= 1:
                break
        self.look(name)

    def look(self, name: str) -> None:
        """Save, then measure on fixed scenes."""
        if rank() > 0:
            return
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
            "weight_decay": 0.05 if matrix else 0.0,
            "base_lr": rate,
            "lr": 0.0,
        }
        for seeing, rate in ((True, leg.vision_learning_rate), (False, leg.learning_rate))
        for matrix in (True, False)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--legs",
        default="sprites:25,patches:60,pretrain:30,tasks:90,whole:45",
        help=f"NAME:MINUTES,… of {', '.join(LEGS)} (default: %(default)s)",
    )
    parser.add_argument("--init", type=Path, help="weights to start from, a .safetensors file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with process_group("cpu"):
        trainer = Trainer(options.output, options.seed)
        if options.init:
            trainer.start_from(options.init)
        for number, leg in enumerate(options.legs.split(","), start=1):
            name, minutes = leg.split(":")
            trainer.run(name, float(minutes), number)


if __name__ == "__main__":
    main()
