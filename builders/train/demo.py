"""Train the demo checkpoint on emoji scenes, from nothing.

    python builders/train/demo.py --output build/train

The curriculum is a list of NAME:MINUTES; each stage continues from the weights of the one before, and
`--init` from weights of an earlier run. First the vision encoder learns single sprites in small windows,
where a picture costs a quarter; then it learns to see through styles while the decoder learns the names;
then whole scenes are captioned. `log.jsonl` in the output folder holds losses and looks at fixed scenes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from builders.data.emoji_scenes import PATCH, Scene, SceneBatch, SceneGenerator
from builders.data.emoji_sprites import HELD_OUT_STYLE, TRAIN_STYLES
from builders.data.scene_grammar import object_recall
from builders.data.vocabulary import build_vocabulary
from builders.train.captioning import caption_loss, decoder_source, greedy_captions
from builders.train.patch_labelling import PatchLabelling
from mplug.checkpoint import load_weights, save_weights
from mplug.config import GenerationConfig, MPlugConfig, TextConfig, VisionConfig
from mplug.network import MPlug
from mplug.preprocess import PIXEL_MEAN, PIXEL_STD

TRAINING_STYLES = TRAIN_STYLES
CLASSES = 250
SCENE_SIZE = 128  # pixels
PAD, CLS, SEP = 0, 101, 102
PROMPT = "a picture of"
VALIDATION_SEED = 20_000
#: Chance of groups of 1, 2, 3, 4 objects: the more there are, the smaller each is drawn.
COUNT_WEIGHTS = [0.8, 0.12, 0.05, 0.03]


@dataclass(frozen=True)
class Stage:
    """One leg of the curriculum."""

    image_size: int  #: pixels
    max_groups: int
    max_count: int
    batch_size: int
    learning_rate: float
    augmented: float  #: share of batches whose sprites are augmented
    patch_weight: float  #: weight of the patch labels beside the captions
    captions: bool = True  #: without, the vision encoder learns alone
    kept_patches: int | None = None  #: work on so many patches, those of objects first


STAGES = {
    "sprites": Stage(64, 1, 1, 64, 6e-4, augmented=0.3, patch_weight=1.0, captions=False),
    "styles": Stage(64, 1, 1, 64, 5e-4, augmented=0.7, patch_weight=1.0),
    "scenes": Stage(128, 2, 4, 32, 4e-4, augmented=0.4, patch_weight=1.0),
    "objects": Stage(128, 2, 4, 48, 4e-4, augmented=0.4, patch_weight=1.0, kept_patches=24),
    "whole": Stage(128, 2, 4, 32, 2e-4, augmented=0.4, patch_weight=0.5),
    "crowds": Stage(128, 4, 4, 32, 3e-4, augmented=0.7, patch_weight=0.5),
}


def demo_config(image_size: int, vocab_size: int) -> MPlugConfig:
    """The demo checkpoint's sizes: about 8 M parameters."""
    return MPlugConfig(
        vision=VisionConfig(image_size=image_size, patch_size=16, width=192, layers=6),
        text=TextConfig(
            vocab_size=vocab_size, hidden_size=192, intermediate_size=768, heads=3, max_positions=64,
            type_vocab_size=2, layer_norm_eps=1e-12, dropout=0.0, num_hidden_layers=3, text_encoder_layers=2,
            fusion_layers=3, stride_layer=2, text_decode_layers=3,
        ),
        generation=GenerationConfig(num_beams=5, min_length=2, max_length=24),
        tasks=("image-captioning",),
        embed_dim=128,
        max_text_length=32,
        caption_states="fused",
        prompt=PROMPT,
    )


class WordIds:
    """Caption → ids by whole words; the grammar's words all stand in the vocabulary."""

    def __init__(self, vocabulary: list[str]) -> None:
        self.vocabulary = vocabulary
        self.ids = {word: index for index, word in enumerate(vocabulary)}

    def encode(self, text: str) -> list[int]:
        return [CLS, *(self.ids[word] for word in text.replace(",", " , ").replace("-", " - ").split()), SEP]

    def decode(self, ids: list[int]) -> str:
        words = []
        for token in ids[1:]:
            if token == SEP:
                break
            words.append(self.vocabulary[token])
        return " ".join(words)


class SceneStream(IterableDataset):
    """Endless batches of fresh scenes, drawn in a process of its own."""

    def __init__(self, stage: Stage, words: WordIds, seed: int) -> None:
        self.stage, self.words, self.seed = stage, words, seed

    def __iter__(self):
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        scenes = SceneGenerator(
            TRAINING_STYLES, size=SCENE_SIZE, max_groups=self.stage.max_groups,
            max_count=self.stage.max_count, augment=True, seed=self.seed,
        )
        scenes.count_weights = COUNT_WEIGHTS
        chance = Random(self.seed)
        while True:
            scenes.augment = chance.random() < self.stage.augmented
            yield tensors_of(scenes.batch(self.stage.batch_size), self.words, self.stage.image_size)


def tensors_of(batch: SceneBatch, words: WordIds, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels uint8 `[B, R, R, 3]`, caption ids `[B, L]` padded, patch labels `[B, g, g]`; R = `size`.

    Where R is smaller than the scenes, a window around the first object is cut out on patch borders.
    """
    patches = size // PATCH
    corners = [window_corner(scene, patches) for scene in batch.scenes]
    images = np.stack([
        image[y * PATCH : y * PATCH + size, x * PATCH : x * PATCH + size]
        for image, (y, x) in zip(batch.images, corners, strict=True)
    ])
    labels = np.stack([
        grid[y : y + patches, x : x + patches] for grid, (y, x) in zip(batch.patch_labels, corners, strict=True)
    ])
    captions = [words.encode(caption) for caption in batch.captions]
    ids = np.full((len(captions), max(map(len, captions))), PAD, np.int64)
    for row, caption in zip(ids, captions, strict=True):
        row[: len(caption)] = caption
    return torch.from_numpy(images), torch.from_numpy(ids), torch.from_numpy(labels.astype(np.int64))


def object_patches(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Of labels `[B, g, g]`, the indices `[B, count]` of patches that show objects, filled up with background."""
    shown = (labels.flatten(1) > 0).float()
    return (shown + 0.5 * torch.rand_like(shown)).topk(count, dim=1).indices


def window_corner(scene: Scene, patches: int) -> tuple[int, int]:
    """Upper left patch (row, column) of a window of `patches`² around the scene's first object."""
    x0, y0, x1, y1 = scene.objects[0].box
    room = SCENE_SIZE // PATCH - patches
    row, column = ((low + high) / 2 / PATCH - patches / 2 for low, high in ((y0, y1), (x0, x1)))
    return min(max(round(row), 0), room), min(max(round(column), 0), room)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 `[B, R, R, 3]` → normalised `[B, 3, R, R]`."""
    mean, std = torch.from_numpy(PIXEL_MEAN), torch.from_numpy(PIXEL_STD)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


class Trainer:
    """Runs stages, measures, saves."""

    def __init__(self, output: Path) -> None:
        self.output = output
        output.mkdir(parents=True, exist_ok=True)
        self.words = WordIds(build_vocabulary())
        self.prompt_ids = torch.tensor(self.words.encode(PROMPT))
        self.network: MPlug | None = None
        self.patches = PatchLabelling(192, CLASSES)
        self.samples = 0
        self.started = time.time()

    def log(self, **record: object) -> None:
        record = {"minutes": round((time.time() - self.started) / 60, 2), "samples": self.samples, **record}
        with (self.output / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    def run(self, name: str, minutes: float, seed: int) -> None:
        """Train one stage for a span of time, cosine over that span."""
        stage = STAGES[name]
        network = MPlug(demo_config(stage.image_size, len(self.words.vocabulary)))
        if self.network is None:
            network.initialise()
        else:
            load_weights(network, self.network.state_dict(), source="the stage before")
        self.network = network.train()
        groups = parameter_groups(network, self.patches, stage.learning_rate)
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        stream = DataLoader(SceneStream(stage, self.words, seed), batch_size=None, num_workers=1, prefetch_factor=4)
        begun, last_log, last_look = time.time(), time.time(), time.time()
        losses: list[tuple[float, float]] = []
        for step, (images, ids, labels) in enumerate(stream, start=1):
            progress = (time.time() - begun) / (60 * minutes)
            if progress >= 1:
                break
            factor = min(1.0, step / 300) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * factor
            with torch.autocast("cpu", torch.bfloat16):
                kept = None if stage.kept_patches is None else object_patches(labels, stage.kept_patches)
                image_states = network.vision_encoder(normalise(images), kept)
                seen = labels.flatten(1) if kept is None else labels.flatten(1).gather(1, kept)
                patch = self.patches(image_states, seen)
                caption = torch.zeros(())
                if stage.captions:
                    caption = caption_loss(network, decoder_source(network, image_states, self.prompt_ids), ids)
                loss = caption + stage.patch_weight * patch
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            parameters = [p for group in groups for p in group["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            self.samples += images.shape[0]
            losses.append((caption.item(), patch.item()))
            if time.time() - last_log > 60:
                mean = np.mean(losses, axis=0)
                self.log(stage=name, step=step, caption=round(mean[0], 4), patch=round(mean[1], 4),
                         per_second=round(len(losses) * stage.batch_size / (time.time() - last_log)))
                losses, last_log = [], time.time()
            if time.time() - last_look > 420:
                self.look(name)
                self.save()
                last_look = time.time()
        self.look(name)
        self.save()

    @torch.no_grad()
    def look(self, name: str) -> None:
        """Object recall and exact captions on fixed unaugmented scenes, training styles and held out."""
        assert self.network is not None
        stage = STAGES[name]
        results = {}
        self.network.eval()
        for label, styles in (("train", TRAINING_STYLES), ("held_out", (HELD_OUT_STYLE,))):
            scenes = SceneGenerator(styles, size=SCENE_SIZE, max_groups=stage.max_groups,
                                    max_count=stage.max_count, augment=False, seed=VALIDATION_SEED)
            batch = scenes.batch(200)
            images, _, labels = tensors_of(batch, self.words, stage.image_size)
            with torch.autocast("cpu", torch.bfloat16):
                image_states = self.network.vision_encoder(normalise(images))
                results[f"{label}_patches"] = round(self.patches.accuracy(image_states, labels), 3)
                if not stage.captions:
                    continue
                source = decoder_source(self.network, image_states, self.prompt_ids)
                ids = greedy_captions(self.network, source, cls_id=CLS, sep_id=SEP, length=25)
            texts = [self.words.decode(row.tolist()) for row in ids]
            recall = [object_recall(text, scene) for text, scene in zip(texts, batch.scenes, strict=True)]
            exact = [text == caption for text, caption in zip(texts, batch.captions, strict=True)]
            results[label] = {"recall": round(float(np.mean(recall)), 3), "exact": round(float(np.mean(exact)), 3)}
            results[f"{label}_example"] = [batch.captions[0], texts[0]]
        self.network.train()
        self.log(stage=name, look=results)

    def save(self) -> None:
        """Write the weights; a kill between two writes leaves the earlier file whole."""
        assert self.network is not None
        unfinished = self.output / "unfinished.safetensors"
        save_weights(self.network, unfinished, dtype=torch.float32)
        os.replace(unfinished, self.output / "model.safetensors")
        torch.save(self.patches.state_dict(), self.output / "patches.pt")


def parameter_groups(network: MPlug, patches: PatchLabelling, learning_rate: float) -> list[dict]:
    """AdamW groups: weight decay on matrices alone."""
    named = [*network.named_parameters(), *patches.named_parameters()]
    decayed = [p for _, p in named if p.ndim > 1]
    plain = [p for _, p in named if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": 0.05, "base_lr": learning_rate, "lr": 0.0},
        {"params": plain, "weight_decay": 0.0, "base_lr": learning_rate, "lr": 0.0},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stages", default="sprites:25,styles:18,scenes:60",
                        help=f"NAME:MINUTES,… of {', '.join(STAGES)} (default: %(default)s)")
    parser.add_argument("--init", type=Path, help="weights to start from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    trainer = Trainer(options.output)
    if options.init:
        from mplug.checkpoint import read_state_dict

        weights = read_state_dict(options.init)
        grid = round((weights["vision_encoder.position_embedding"].shape[0] - 1) ** 0.5)
        trainer.network = MPlug(demo_config(grid * 16, len(trainer.words.vocabulary)))
        load_weights(trainer.network, weights, source=options.init)
        patches = options.init.with_name("patches.pt")
        if patches.exists():
            trainer.patches.load_state_dict(torch.load(patches, weights_only=True))
    for index, leg in enumerate(options.stages.split(",")):
        name, minutes = leg.split(":")
        trainer.run(name, float(minutes), options.seed + 1000 * (index + 1))


if __name__ == "__main__":
    main()
