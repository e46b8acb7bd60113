"""What the skip-connections of the fusion encoder buy: the paper's ablation, on emoji scenes.

    OMP_NUM_THREADS=1 python demo/ablation.py --minutes 26 --output docs

Four networks that differ in `stride_layer` alone: 1 (every layer but the first is connected attention), 2, 3
(published base) and never (asymmetric co-attention only, as in published large). They look through the demo's vision
encoder, which stays frozen and ran once over a pool of scenes; everything else, half as wide as the demo's so that
many steps fit in little time, starts from nothing and equal. All see the same batches in the same order, and
each batch trains one after the other, so that whatever else the machine does slows all of them alike. Speed is
measured there, and at published base size on the fusion encoder alone. Writes `ablation.json`, `ablation.png` and the
table in `ablation.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from builders.data.streams import seed_of
from builders.train.batches import TensorMaker
from builders.train.fused_states import fuse
from builders.train.generation import generate
from builders.train.objectives.answering import answer_loss
from builders.train.objectives.captioning import caption_loss, decoder_source
from builders.train.schedule import adamw, cosine_with_warmup, set_rate
from demo.ablation_report import report
from demo.scene_stream import SCENE_TEXTS, SceneRecords
from demo.scenes.generator import Scene
from demo.scenes.sprites import TRAIN_STYLES
from mplug.checkpoint import load_checkpoint
from mplug.config import MPlugConfig, TextConfig
from mplug.inputs.pixels import pixel_values
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug
from mplug.network.fusion_encoder import FusionEncoder

FUSION_LAYERS = 6
STRIDES = {"1": 1, "2": 2, "3": 3, "never": FUSION_LAYERS}
BASELINE = "1"  # what speed is a ratio to: attention over image and text in every layer that may have it
WIDTH, FEED_FORWARD, HEADS, LAYERS = 96, 384, 3, 2  # of the text side; layers of text encoder and decoder each
POOL = 3000  # scenes to train on, with fresh questions every time
SCENES, QUESTIONS = 16, 2  # scenes of a batch, questions about each
LEARNING_RATE = 1e-3
WARMUP = 30  # steps
TEST_SCENES, TEST_QUESTIONS = 400, 3
LOOK_SCENES = 100  # of the test scenes, on the way
TEST_SEED = 1  # of the streams; training has 0
LOOKS = 5  # on the way and at the end, evenly over the run
ANSWER_LENGTH, CAPTION_LENGTH = 6, 24  # tokens
REPEATS = 40  # of each measurement of inference
BASE_TOKENS, BASE_TEXT, BASE_REPEATS = 577, 20, 5  # published base at 384 pixels


@dataclass
class Variant:
    """One network of the comparison, and what was measured of it."""

    network: MPlug
    optimiser: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)  #: CPU time of each training step
    losses: list[float] = field(default_factory=list)
    looks: list[dict[str, float]] = field(default_factory=list)


def variant_config(config: MPlugConfig, stride: int) -> MPlugConfig:
    """The demo's vision encoder, and a narrow text side with six fusion layers."""
    text = replace(
        config.text,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        heads=HEADS,
        text_encoder_layers=LAYERS,
        text_decode_layers=LAYERS,
        num_hidden_layers=FUSION_LAYERS,
        fusion_layers=FUSION_LAYERS,
        stride_layer=stride,
    )
    tasks = ("image-captioning", "visual-question-answering")
    return replace(config, text=text, tasks=tasks, caption_states="fused", prompt="a picture of")


def make_variant(demo: MPlug, stride: int, seed: int) -> Variant:
    """A fresh network; what two variants have in common starts equal."""
    network = MPlug(variant_config(demo.config, stride))
    network.initialise(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:  # cross-attention, which connected layers lack, would shift the draws
            generator = torch.Generator().manual_seed(seed_of(seed, name))
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    network.vision_encoder.load_state_dict(demo.vision_encoder.state_dict(), strict=False)  # it has no projection
    network.vision_encoder.requires_grad_(False)
    network.vision_encoder.projection.requires_grad_(True)
    return Variant(network, adamw([network], LEARNING_RATE, LEARNING_RATE))


@dataclass(frozen=True)
class Examples:
    """Scenes with questions and captions, seen through the demo's vision encoder; the same for all variants."""

    seen: Tensor  #: `[B, N, 192]` states in half precision
    questions: dict
    image_index: Tensor
    captions: Tensor
    kinds: list[str]

    @classmethod
    def of(cls, scenes: list[Scene], seen: Tensor, questions: int, random: Random, maker: TensorMaker) -> Examples:
        asked = SCENE_TEXTS["vqa"](scenes, random, questions)
        places = {id(scene.image): index for index, scene in enumerate(scenes)}
        tensors = {
            "question_ids": maker.ids([record.question for record in asked]),
            "answer_ids": maker.ids([record.answers[0] for record in asked]),
        }
        image_index = torch.tensor([places[id(record.image)] for record in asked])
        captions = maker.ids([scene.caption for scene in scenes], clean=True)
        return cls(seen.float(), tensors, image_index, captions, [record.kind for record in asked])

    def first(self, scenes: int) -> Examples:
        """Those of the first scenes."""
        rows = (self.image_index < scenes).nonzero()[:, 0]
        questions = {name: ids[rows] for name, ids in self.questions.items()}
        kinds = [self.kinds[row] for row in rows.tolist()]
        return Examples(self.seen[:scenes], questions, self.image_index[rows], self.captions[:scenes], kinds)


@torch.no_grad()
def look_through(demo: MPlug, scenes: list[Scene]) -> Tensor:
    """What the demo's vision encoder makes of scenes, `[n, N, 192]` in half precision."""
    found = []
    for index in range(0, len(scenes), SCENES):
        pixels = [
            pixel_values(Image.fromarray(scene.image), demo.config.vision.image_size)
            for scene in scenes[index : index + SCENES]
        ]
        with torch.autocast("cpu", torch.bfloat16):
            found.append(demo.vision_encoder(torch.from_numpy(np.stack(pixels))).half())
    return torch.cat(found)


def train_step(variant: Variant, examples: Examples, prompt: Tensor, rate: float) -> None:
    """One step on one batch: answers and captions, equally weighted."""
    started = time.process_time()
    network = variant.network
    with torch.autocast("cpu", torch.bfloat16):
        states = network.vision_encoder.projection(examples.seen)
        answers = answer_loss(
            network,
            states,
            examples.questions["question_ids"],
            None,
            examples.questions["answer_ids"],
            image_index=examples.image_index,
        )
        captions = caption_loss(network, decoder_source(network, states, prompt), examples.captions)
        loss = answers + captions
    set_rate(variant.optimiser, rate)
    variant.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.grad is not None], 1.0)
    variant.optimiser.step()
    variant.seconds.append(time.process_time() - started)
    variant.losses.append(loss.item())


@torch.no_grad()
def look(network: MPlug, test: Examples, prompt: Tensor, tokenizer: Tokenizer) -> dict[str, float]:
    """Shares of answers and captions that are right, word for word, decoded greedily."""
    network.eval()
    right: list[bool] = []
    with torch.autocast("cpu", torch.bfloat16):
        states = network.vision_encoder.projection(test.seen)
        ids, wanted = test.questions["question_ids"], test.questions["answer_ids"]
        for part in torch.arange(len(ids)).split(100):
            source = network.decoder_input(*fuse(network, states, ids[part], image_index=test.image_index[part]))
            right += _equal(_greedy(network, source, tokenizer, ANSWER_LENGTH), wanted[part], tokenizer)
        same: list[bool] = []
        for part in torch.arange(len(states)).split(100):
            source = decoder_source(network, states[part], prompt)
            same += _equal(_greedy(network, source, tokenizer, CAPTION_LENGTH), test.captions[part], tokenizer)
    network.train()
    by_kind = {
        kind: float(np.mean([ok for ok, own in zip(right, test.kinds, strict=True) if own == kind]))
        for kind in sorted(set(test.kinds))
    }
    return {"answers": float(np.mean(right)), "captions": float(np.mean(same)), **by_kind}


def _greedy(network: MPlug, source: tuple[Tensor, Tensor], tokenizer: Tokenizer, length: int) -> Tensor:
    return generate(network, source, start_id=tokenizer.cls_id, end_id=tokenizer.sep_id, length=length)


def _equal(found: Tensor, wanted: Tensor, tokenizer: Tokenizer) -> list[bool]:
    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return [tokenizer.decode(one[1:]) == tokenizer.decode(other[1:]) for one, other in pairs]


@torch.no_grad()
def inference_seconds(variants: dict[str, Variant], test: Examples, tokenizer: Tokenizer) -> dict[str, float]:
    """CPU time of one answer behind the vision encoder: text encoder, fusion, two steps of the decoder; medians."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    ids, image = test.questions["question_ids"], test.image_index
    for repeat in range(REPEATS + 5):
        for name, variant in variants.items():
            variant.network.eval()
            started = time.process_time()
            row = slice(repeat, repeat + 1)
            fused = fuse(variant.network, variant.network.vision_encoder.projection(test.seen[image[row]]), ids[row])
            _greedy(variant.network, variant.network.decoder_input(*fused), tokenizer, 3)
            if repeat >= 5:
                seconds[name].append(time.process_time() - started)
    return {name: median(values) for name, values in seconds.items()}


def base_size_seconds() -> dict[str, dict[str, float]]:
    """CPU time of the fusion encoder alone at published base size, random weights: forward, and forward and back."""
    text = json.loads((Path(__file__).parents[1] / "builders/train/configs/base/config_bert.json").read_text())
    width, tokens = text["hidden_size"], BASE_TOKENS
    image, words, mask = torch.randn(1, tokens, width), torch.randn(1, BASE_TEXT, width), torch.ones(1, BASE_TEXT)
    networks = {}
    for name, stride in STRIDES.items():
        networks[name] = FusionEncoder(
            TextConfig(
                vocab_size=100,
                hidden_size=width,
                intermediate_size=text["intermediate_size"],
                heads=text["num_attention_heads"],
                max_positions=64,
                type_vocab_size=2,
                layer_norm_eps=1e-12,
                dropout=0.0,
                num_hidden_layers=FUSION_LAYERS,
                text_encoder_layers=1,
                fusion_layers=FUSION_LAYERS,
                stride_layer=stride,
                text_decode_layers=1,
            )
        )
    measured: dict[str, dict[str, list[float]]] = {name: {"inference": [], "training": []} for name in networks}
    for repeat in range(BASE_REPEATS + 1):
        for name, network in networks.items():
            for kind in ("inference", "training"):
                started = time.process_time()
                with torch.set_grad_enabled(kind == "training"), torch.autocast("cpu", torch.bfloat16):
                    fused = network(image, words, mask)
                if kind == "training":
                    sum(states.float().sum() for states in fused).backward()
                if repeat:
                    measured[name][kind].append(time.process_time() - started)
    return {name: {kind: median(values) for kind, values in kinds.items()} for name, kinds in measured.items()}


def results_of(variants: dict[str, Variant], test: Examples, inference: dict[str, float]) -> dict[str, dict]:
    """The figures of every variant, speed as a ratio to the baseline's."""
    baseline = variants[BASELINE]
    found = {}
    for name, variant in variants.items():
        last = variant.looks[-1]
        counts = {"answers": len(test.kinds), "captions": len(test.seen)}
        found[name] = {
            "parameters": sum(p.numel() for p in variant.network.fusion_encoder.parameters()),
            "training samples per second, ratio": median(baseline.seconds) / median(variant.seconds),
            "training seconds per step": median(variant.seconds),
            "inference seconds": inference[name],
            "inference time, ratio": inference[name] / inference[BASELINE],
            "looks": variant.looks,
            "losses": [float(np.mean(part)) for part in np.array_split(variant.losses, min(40, len(variant.losses)))],
            **{f"{key} right": last[key] for key in counts},
            **{f"{key} standard error": (last[key] * (1 - last[key]) / n) ** 0.5 for key, n in counts.items()},
        }
    return found


def run(options: argparse.Namespace) -> dict:
    """Train all variants and measure them."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    demo, files = load_checkpoint(options.checkpoint)
    demo.eval().requires_grad_(False)
    maker = TensorMaker(Tokenizer(files.vocabulary, demo.config.text.vocab_size), demo.config)
    tokenizer = maker.tokenizer
    prompt = torch.tensor([tokenizer.cls_id, *tokenizer.pieces("a picture of"), tokenizer.sep_id])
    variants = {name: make_variant(demo, stride, options.seed) for name, stride in STRIDES.items()}
    test_scenes = SceneRecords("vqa", TRAIN_STYLES, TEST_SCENES, seed=TEST_SEED, augment=False).scenes(0)
    seen = look_through(demo, test_scenes)
    test = Examples.of(test_scenes, seen, TEST_QUESTIONS, Random(TEST_SEED), maker)
    pool = SceneRecords("vqa", TRAIN_STYLES, options.pool, augment=False).scenes(0)
    pool_seen = look_through(demo, pool)
    # What time itself takes does not depend on the weights, so it is measured first.
    document = {
        "hardware": f"{os.cpu_count()} cores, {cpu_name()}; one thread, other work beside it; times are CPU times",
        "software": f"PyTorch {torch.__version__}, bfloat16 autocast in training",
        "checkpoint": f"{options.checkpoint.name}, sha256 {files.sha256()[:16]}",
        "seed": options.seed,
        "pool of scenes": options.pool,
        "batch": f"{SCENES} scenes, {QUESTIONS} questions and a caption each",
        "baseline": f"stride {BASELINE}",
        "base size, fusion encoder alone": base_size_seconds(),
    }
    inference = inference_seconds(variants, test, tokenizer)
    for variant in variants.values():
        variant.network.train()
    started, looked, index = time.process_time(), 0, 0
    bar = tqdm(total=100, unit="%", desc="ablation")
    while True:
        spent = (time.process_time() - started) / 60
        done = spent / options.minutes if options.steps is None else index / options.steps
        bar.update(round(100 * min(done, 1.0)) - bar.n)
        if done * LOOKS >= looked + 1 or done >= 1:
            looked += 1
            part = test if done >= 1 else test.first(LOOK_SCENES)
            for variant in variants.values():
                variant.looks.append({"step": index, **look(variant.network, part, prompt, tokenizer)})
            document |= {
                "finished": done >= 1,
                "steps": index,
                "CPU minutes": round(spent, 1),
                "test": {"questions": len(part.kinds), "scenes": len(part.seen)},
                "variants": results_of(variants, part, inference),
            }
            write(options.output, document)
        if done >= 1:
            break
        random = Random(seed_of("ablation", options.seed, index))
        chosen = random.sample(range(len(pool)), SCENES)
        examples = Examples.of([pool[place] for place in chosen], pool_seen[chosen], QUESTIONS, random, maker)
        order = list(variants.values())
        rate = cosine_with_warmup(done, index, WARMUP)
        for variant in order[index % len(order) :] + order[: index % len(order)]:
            train_step(variant, examples, prompt, rate)
        index += 1
    bar.close()
    return document


def cpu_name() -> str:
    """The processor as Linux names it."""
    information = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        if information.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def write(folder: Path, document: dict) -> None:
    """Write `ablation.json`; a kill leaves the earlier one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "ablation.json.unfinished"
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(unfinished, folder / "ablation.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo"), help="whose vision encoder it is")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of CPU time, for all four together")
    length.add_argument("--steps", type=int, help="of training, instead")
    parser.add_argument("--pool", type=int, default=POOL, help=f"scenes to train on ({POOL})")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run(options)
    report(options.output)


if __name__ == "__main__":
    main()
