"""What the skip-connections of the fusion encoder buy: the paper's ablation, on emoji scenes.

    OMP_NUM_THREADS=1 python demo/ablation.py --seeds 3 --minutes 3 --output docs

Three networks that differ in `stride_layer` alone: 1 (connected attention in every layer but the first), 3 (the skip-
connections of published base) and never (co-attention in every layer, no connection). They look through the demo's
vision encoder, which stays frozen and ran once over a pool of scenes; everything else, a third as wide as the demo's
so that many steps fit in little time, starts from nothing and equal. All see the same batches in the same order. They
take turns: the one that has had the least CPU time makes the next step, so that whatever else the machine does slows
all of them alike, and every network has trained for the same time at the end, but for a different number of steps.
The rate stays constant after the warm-up, and what is looked at is a moving average of the weights, so that any
moment of a run can be compared with any other: at equal steps, and at equal time. Each seed leaves `ablation-
SEED.json` and is not run again. Speed at published base size is measured on the fusion encoder alone. Writes
`ablation.json`, `ablation.png` and the tables in `ablation.md`.
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

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from builders.data.streams import seed_of
from builders.train.batches import TensorMaker
from builders.train.fused_states import fuse
from builders.train.generation import generate
from builders.train.learners import momentum_copy
from builders.train.objectives.answering import answer_loss
from builders.train.schedule import new_optimiser, set_rate
from demo.ablation_report import report
from demo.ablation_speed import seconds_by_size
from demo.scene_stream import SCENE_SIZE, SCENE_TEXTS
from demo.scenes.classes import load_classes
from demo.scenes.generator import Scene, SceneGenerator
from demo.scenes.sprites import SPLIT_STYLES
from mplug.checkpoint import load_checkpoint
from mplug.config import MPlugConfig
from mplug.inputs.pixels import pixel_values
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug

FUSION_LAYERS = 6
STRIDES = {"1": 1, "3": 3, "never": FUSION_LAYERS}
WIDTH, FEED_FORWARD, HEADS, LAYERS = 64, 256, 2, 1  # of the text side; layers of text encoder and decoder each
CLASSES = 8  # things that scenes show: few, so that they can be learnt from answers alone
POOL = 1500  # scenes to train on, with fresh questions every time
SCENES, QUESTIONS = 16, 3  # scenes of a batch, questions about each
LEARNING_RATE = 7e-4  # at 2e-3 the strides 3 and never lose the question within 200 steps
WARMUP = 150  # steps
AVERAGED = 0.98  # of the weights that are looked at, what stays of them at every step
TEST_SCENES, TEST_QUESTIONS = 250, 3
LOOK_EVERY = 300  # steps
ANSWER_LENGTH = 6  # tokens
SEED_OF_SCENES = 30_000  # validation's; training's pool and the test have streams of their own


@dataclass
class Variant:
    """One network of the comparison, and what was measured of it."""

    network: MPlug
    optimiser: torch.optim.Optimizer
    average: AveragedModel
    seconds: float = 0.0  #: CPU time of its training so far
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    looks: list[dict[str, float]] = field(default_factory=list)


def variant_config(config: MPlugConfig, stride: int) -> MPlugConfig:
    """Return the demo's vision encoder, and a narrow text side with six fusion layers."""
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
    return replace(config, text=text, tasks=("visual-question-answering",))


def make_variant(demo: MPlug, stride: int, seed: int) -> Variant:
    """Return a fresh network; what two variants have in common starts equal."""
    network = MPlug(variant_config(demo.config, stride))
    network.initialise(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:  # cross-attention, which connected layers lack, would shift the draws
            generator = torch.Generator().manual_seed(seed_of(seed, name))
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    network.vision_encoder.load_state_dict(demo.vision_encoder.state_dict(), strict=False)  # it has no projection
    network.vision_encoder.requires_grad_(False)
    network.vision_encoder.projection.requires_grad_(True)
    return Variant(network, new_optimiser([network], LEARNING_RATE, LEARNING_RATE), momentum_copy(network, AVERAGED))


@dataclass(frozen=True)
class Examples:
    """Scenes with questions, seen through the demo's vision encoder; the same for all variants."""

    seen: Tensor  #: `[B, N, 192]` states
    questions: Tensor  #: `[Q, L]` ids
    answers: Tensor  #: `[Q, L]` ids
    image_index: Tensor  #: `[Q]` which scene a question is about
    kinds: list[str]

    @classmethod
    def of(cls, scenes: list[Scene], seen: Tensor, questions: int, random: Random, maker: TensorMaker) -> Examples:
        """Ask so many questions about each scene."""
        asked = SCENE_TEXTS["vqa"](scenes, random, questions)
        places = {id(scene.image): index for index, scene in enumerate(scenes)}
        return cls(
            seen.float(),
            maker.ids([record.question for record in asked]),
            maker.ids([record.answers[0] for record in asked]),
            torch.tensor([places[id(record.image)] for record in asked]),
            [record.kind for record in asked],
        )


def draw_scenes(count: int, seed: int) -> list[Scene]:
    """Return scenes of one or two groups that show the first `CLASSES` classes alone."""
    generator = SceneGenerator(SPLIT_STYLES, size=SCENE_SIZE, max_groups=2, seed=SEED_OF_SCENES + seed)
    random = Random(seed_of("classes", seed))
    known = [emoji_class.index for emoji_class in load_classes()[:CLASSES]]
    return [generator.scene(random.sample(known, 2)) for _ in range(count)]


@torch.no_grad()
def look_through(demo: MPlug, scenes: list[Scene]) -> Tensor:
    """Return what the demo's vision encoder makes of scenes, `[n, N, 192]` in half precision."""
    found = []
    for index in range(0, len(scenes), SCENES):
        pixels = [
            pixel_values(Image.fromarray(scene.image), demo.config.vision.image_size)
            for scene in scenes[index : index + SCENES]
        ]
        with torch.autocast("cpu", torch.bfloat16):
            found.append(demo.vision_encoder(torch.from_numpy(np.stack(pixels))).half())
    return torch.cat(found)


def train_step(variant: Variant, examples: Examples) -> None:
    """Make one step on one batch of answers."""
    started = time.process_time()
    network = variant.network
    with torch.autocast("cpu", torch.bfloat16):
        states = network.vision_encoder.projection(examples.seen)
        loss = answer_loss(
            network, states, examples.questions, None, examples.answers, image_index=examples.image_index
        )
    set_rate(variant.optimiser, min(1.0, (variant.steps + 1) / WARMUP))
    variant.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.grad is not None], 1.0)
    variant.optimiser.step()
    variant.average.update_parameters(network)
    variant.seconds += time.process_time() - started
    variant.steps += 1
    variant.losses.append(loss.item())


@torch.no_grad()
def look(network: MPlug, test: Examples, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the shares of answers that are right, word for word, decoded greedily: of all, and by kind."""
    network.eval()
    right: list[bool] = []
    with torch.autocast("cpu", torch.bfloat16):
        states = network.vision_encoder.projection(test.seen)
        for part in torch.arange(len(test.questions)).split(150):
            fused = fuse(network, states, test.questions[part], image_index=test.image_index[part])
            found = generate(
                network,
                network.decoder_input(*fused),
                start_id=tokenizer.cls_id,
                end_id=tokenizer.sep_id,
                length=ANSWER_LENGTH,
            )
            pairs = zip(found.tolist(), test.answers[part].tolist(), strict=True)
            right += [tokenizer.decode(one[1:]) == tokenizer.decode(other[1:]) for one, other in pairs]
    network.train()
    by_kind = {
        kind: float(np.mean([ok for ok, own in zip(right, test.kinds, strict=True) if own == kind]))
        for kind in sorted(set(test.kinds))
    }
    return {"answers": float(np.mean(right)), **by_kind}


def run_seed(demo: MPlug, maker: TensorMaker, seed: int, minutes: float) -> dict:
    """Train every variant for so many minutes of CPU time; return what was measured."""
    pool, test_scenes = draw_scenes(POOL, 2 * seed + 1), draw_scenes(TEST_SCENES, 2 * seed)
    pool_seen = look_through(demo, pool)
    test = Examples.of(test_scenes, look_through(demo, test_scenes), TEST_QUESTIONS, Random(seed), maker)
    variants = {name: make_variant(demo, stride, seed) for name, stride in STRIDES.items()}
    bar = tqdm(total=100, unit="%", desc=f"seed {seed}")
    while True:
        variant = min(variants.values(), key=lambda each: each.seconds)
        over = variant.seconds >= 60 * minutes  # of the one that had least, so of all
        bar.update(round(100 * min(variant.seconds / 60 / minutes, 1.0)) - bar.n)
        if over:
            break
        random = Random(seed_of("ablation", seed, variant.steps))
        chosen = random.sample(range(len(pool)), SCENES)
        train_step(variant, Examples.of([pool[n] for n in chosen], pool_seen[chosen], QUESTIONS, random, maker))
        if variant.steps % LOOK_EVERY == 0:
            _look(variant, test, maker.tokenizer)
    for variant in variants.values():
        if not variant.looks or variant.looks[-1]["step"] != variant.steps:
            _look(variant, test, maker.tokenizer)
    bar.close()
    return {
        "seed": seed,
        "minutes": minutes,
        "questions": len(test.kinds),
        "variants": {
            name: {
                "parameters": sum(p.numel() for p in variant.network.fusion_encoder.parameters()),
                "steps": variant.steps,
                "seconds": variant.seconds,
                "looks": variant.looks,
                "losses": [float(np.mean(part)) for part in np.array_split(variant.losses, min(40, variant.steps))],
            }
            for name, variant in variants.items()
        },
    }


def _look(variant: Variant, test: Examples, tokenizer: Tokenizer) -> None:
    found = look(variant.average.module, test, tokenizer)
    variant.looks.append({"step": variant.steps, "seconds": variant.seconds, **found})


def run(options: argparse.Namespace) -> None:
    """Run the seeds that have not been run, and put all of them together."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    demo, files = load_checkpoint(options.checkpoint)
    demo.eval().requires_grad_(False)
    maker = TensorMaker(Tokenizer(files.vocabulary, demo.config.text.vocab_size), demo.config)
    parts = []
    for seed in range(options.seeds):
        path = options.output / f"ablation-{seed}.json"
        if not path.exists():
            write(path, run_seed(demo, maker, seed, options.minutes))
        parts.append(json.loads(path.read_text()))
    document = {
        "hardware": f"{os.cpu_count()} cores, {cpu_name()}; one thread, other work beside it; times are CPU times",
        "software": f"PyTorch {torch.__version__}, bfloat16 autocast",
        "checkpoint": f"{options.checkpoint.name}, sha256 {files.sha256()[:16]}",
        "batch": f"{SCENES} scenes of {CLASSES} classes, up to {QUESTIONS} questions each",
        "base size, fusion encoder alone": seconds_by_size(STRIDES, FUSION_LAYERS),
        "seeds": parts,
    }
    write(options.output / "ablation.json", document)
    for seed in range(options.seeds):
        (options.output / f"ablation-{seed}.json").unlink()


def cpu_name() -> str:
    """Return the processor as Linux names it."""
    information = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        if information.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def write(path: Path, document: dict) -> None:
    """Write JSON; a kill leaves the earlier file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo"), help="whose vision encoder it is")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=3.0, help="of CPU time for each network and seed (3)")
    parser.add_argument("--seeds", type=int, default=3, help="runs from different first weights and scenes (3)")
    options = parser.parse_args()
    run(options)
    report(options.output)


if __name__ == "__main__":
    main()
