"""What lets the vision encoder name drawings by hands that it never saw: short runs of equal CPU time.

    OMP_NUM_THREADS=1 python demo/eye_ablation.py --about network --minutes 7 --output network.json
    OMP_NUM_THREADS=1 python demo/eye_ablation.py --about traits --minutes 6 --output traits.json
    OMP_NUM_THREADS=1 python demo/eye_ablation.py --about augmentation --minutes 18 --pool 18000 --looks 3 \
        --output augmentation.json

Every variant learns from nothing to label the patches of scenes with one object, as the first leg of the curriculum
does, without some of the training styles; what is looked at is the share of patches under objects of those styles,
unaugmented, that are named right. Neither Twemoji nor OpenMoji is looked at, so both stay fit to test with. Styles are
left out in turn, and each turn has a seed of its own: what is compared is variants within a turn. `network` compares
patch embeddings, optimisers and initial weights on the same scenes; `traits` leaves out what the augmentation changes,
one trait at a time; `augmentation` is all of it or none, for longer. Variants of a turn share the time: the one that
has had the least of the CPU makes the next step, so that whatever else the machine does slows all of them alike. Prints
a table; turns in the JSON are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import torch
from torch import nn
from tqdm import tqdm

from builders.train.engine import Settings
from builders.train.schedule import cosine_with_warmup, new_optimiser, set_rate
from demo.scene_stream import FIRST_SEED
from demo.scenes.augmentation import TRAITS
from demo.scenes.generator import SceneGenerator
from demo.scenes.sprites import TRAIN_STYLES
from demo.train import MUON, WARM_UP, settings_of
from demo.training.batches import SCENE_SIZE, SceneTexts, normalise
from demo.training.config import demo_config
from demo.training.learner import DemoLearner
from demo.training.legs import LEGS
from mplug.network import MPlug

LEG = "sprites"
POOL = 6_000  # scenes that a variant sees, again and again
SCENES = 300  # looked at, of every style
LOOK_SEED = 21_000  # of neither a split nor a look of the curriculum
#: Styles left out in turn, so that no hand is on both sides.
TURNS = (["fxemoji", "streamline"], ["emojione", "noto-v1"], ["openclipart", "openclipart-more"])


@dataclass(frozen=True)
class Variant:
    """What differs from the curriculum as it is."""

    name: str
    stem: bool = True
    muon: bool = True
    by_width: bool = True
    rate: float = 1.0  #: of the leg's
    augmented: bool = True
    traits: tuple[str, ...] = TRAITS


ABOUT = {
    "network": (
        Variant("one convolution, AdamW, weights of 0.02", stem=False, muon=False, by_width=False, rate=0.5),
        Variant("one convolution, Muon, weights of 0.02", stem=False, by_width=False),
        Variant("one convolution, Muon, weights by width", stem=False),
        Variant("stem, AdamW, weights by width", muon=False, rate=0.5),
        Variant("stem, Muon, weights by width"),
    ),
    "traits": (
        Variant("drawn as they are", augmented=False),
        *(Variant(f"all but {trait}", traits=tuple(t for t in TRAITS if t != trait)) for trait in TRAITS),
        Variant("all traits"),
    ),
    "augmentation": (Variant("drawn as they are", augmented=False), Variant("all traits")),
}


@dataclass
class Run:
    """A variant in training."""

    variant: Variant
    learner: DemoLearner
    optimiser: object
    batches: list[dict[str, torch.Tensor]]
    seconds: float = 0.0  #: of CPU
    steps: int = 0
    looks: list[dict[str, float]] = field(default_factory=list)  #: scores by style, the last at the end


def pool_of(variant: Variant, styles: Sequence[str], seed: int, scenes: int) -> list[dict[str, torch.Tensor]]:
    """Return batches of so many scenes drawn for a variant, tensors as of `SceneTexts.batch`."""
    leg, texts = LEGS[LEG], SceneTexts(seed)
    generator = SceneGenerator(
        styles,
        size=SCENE_SIZE,
        max_groups=leg.max_groups,
        max_count=leg.max_count,
        augment=True,
        seed=FIRST_SEED + seed,
        traits=variant.traits,
    )
    batches = []
    for number in range(scenes // leg.batch_size):
        generator.augment = variant.augmented and (number % 10) < 10 * leg.augmented
        batches.append(texts.batch(generator.batch(leg.batch_size, paired=True).scenes, None))
    return batches


def begin(variant: Variant, batches: list[dict[str, torch.Tensor]], seed: int) -> Run:
    """Return a variant before its first step."""
    leg = LEGS[LEG]
    config = demo_config(SCENE_SIZE, 2000)  # no text is read: the vocabulary's size is without effect
    if not variant.stem:
        config = replace(config, vision=replace(config.vision, stem=()))
    network = MPlug(config)
    network.initialise(seed, by_width=variant.by_width)
    torch.manual_seed(seed)
    learner = DemoLearner(network, leg)
    settings: Settings = settings_of(leg, 1, seed)
    names = ("patches", "classes", "places", "counts")
    parts = nn.ModuleDict({"vision_encoder": network.vision_encoder} | {name: getattr(learner, name) for name in names})
    rate = variant.rate * settings.learning_rate
    optimiser = new_optimiser(
        [parts], rate, rate, settings.weight_decay, beta2=settings.beta2, muon=MUON if variant.muon else 0.0
    )
    return Run(variant, learner, optimiser, batches)


def one_step(run: Run, limit: float) -> None:
    """Train a variant on its next batch."""
    started = time.thread_time()
    set_rate(run.optimiser, cosine_with_warmup(run.seconds / limit, run.steps, WARM_UP))
    with torch.autocast("cpu", torch.bfloat16):
        losses = run.learner(run.batches[run.steps % len(run.batches)], 0.0)
        total = sum(run.learner.weight_of(name) * loss for name, loss in losses.items())
    total.backward()
    torch.nn.utils.clip_grad_norm_(run.learner.parameters(), 1.0)
    run.optimiser.step()
    run.optimiser.zero_grad()
    run.steps += 1
    run.seconds += time.thread_time() - started


@torch.no_grad()
def look(run: Run, styles: Sequence[str]) -> dict[str, float]:
    """Return the share of patches under objects that are named right, by style."""
    run.learner.eval()
    scores = {}
    for style in styles:
        batch = SceneGenerator((style,), size=SCENE_SIZE, max_groups=1, max_count=1, seed=LOOK_SEED).batch(SCENES)
        states = run.learner.network.vision_encoder(normalise(torch.from_numpy(batch.images)))
        scores[style] = run.learner.patches.accuracy(states, torch.from_numpy(batch.patch_labels).long())
    run.learner.train()
    return scores


def compare(variants: Sequence[Variant], left_out: Sequence[str], seed: int, options: argparse.Namespace) -> list[Run]:
    """Train all variants for as many minutes of CPU time each, and look at them."""
    styles = [style for style in TRAIN_STYLES if style not in left_out]
    pools: dict[tuple[bool, tuple[str, ...]], list[dict[str, torch.Tensor]]] = {}
    runs = []
    for variant in variants:
        key = variant.augmented, variant.traits
        if key not in pools:
            pools[key] = pool_of(variant, styles, seed, options.pool)
        runs.append(begin(variant, pools[key], seed))
    limit = 60 * options.minutes
    with tqdm(total=round(limit * len(runs)), unit="CPU s", desc=f"seed {seed}") as bar:
        while (run := min(runs, key=lambda run: run.seconds)).seconds < limit:
            before = run.seconds
            one_step(run, limit)
            bar.update(run.seconds - before)
            while len(run.looks) < options.looks and run.seconds >= limit * (len(run.looks) + 1) / options.looks:
                run.looks.append(look(run, [*styles[:1], *left_out]))
    return runs


def table(runs: Sequence[dict], variants: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a Markdown table: what was named right of left-out styles, in percent.

    Scores are those at the end. The last column is the mean difference to the last variant, in points, with its
    standard error over turns.
    """

    def scored(variant: str, turn: list[str]) -> float:
        (run,) = (run for run in runs if (run["variant"], run["left_out"]) == (variant, turn))
        return 100 * mean(run["looks"][-1][style] for style in turn)

    turns = [run["left_out"] for run in runs if run["variant"] == variants[-1]]
    yield f"| variant | steps | {' | '.join(', '.join(turn) for turn in turns)} | difference |"
    yield "| --- |" + " ---: |" * (len(turns) + 2)
    for variant in variants:
        steps = mean(run["steps"] for run in runs if run["variant"] == variant)
        cells = [f"{scored(variant, turn):.1f}" for turn in turns]
        gaps = [scored(variant, turn) - scored(variants[-1], turn) for turn in turns]
        error = f" ± {stdev(gaps) / len(gaps) ** 0.5:.1f}" if len(gaps) > 1 and variant != variants[-1] else ""
        yield f"| {variant} | {steps:,.0f} | {' | '.join(cells)} | {mean(gaps):+.1f}{error} |"


def styles_of(text: str) -> list[str]:
    """Return the names in STYLE,STYLE. Raises ArgumentTypeError for a style that is none to train on."""
    styles = text.split(",")
    if unknown := set(styles) - set(TRAIN_STYLES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(TRAIN_STYLES)}")
    return styles


def main() -> int:
    """Compare the variants, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--about", choices=ABOUT, required=True)
    usual = " ".join(",".join(styles) for styles in TURNS)
    parser.add_argument(
        "--left-out",
        type=styles_of,
        nargs="+",
        default=TURNS,
        metavar="STYLE,…",
        help=f"of each turn (default: {usual})",
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="of CPU time, for each variant (%(default)s)")
    parser.add_argument("--pool", type=int, default=POOL, metavar="SCENES", help="of each variant (%(default)s)")
    parser.add_argument("--looks", type=int, default=1, metavar="N", help="at equal parts of the time (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the scores as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    variants = ABOUT[options.about]
    settings = {"about": options.about, "minutes": options.minutes, "pool": options.pool, "looks": options.looks}
    found: list[dict] = []
    if options.output is not None and options.output.exists():
        kept = json.loads(options.output.read_text())
        found = kept.pop("runs")
        if kept != settings:
            parser.error(f"{options.output} is of other settings: {kept}")
    for seed, turn in enumerate(options.left_out):
        if any(run["left_out"] == turn for run in found):
            continue
        for run in compare(variants, turn, seed, options):
            said = {"variant": run.variant.name, "left_out": turn, "seed": seed, "steps": run.steps}
            found.append(said | {"looks": run.looks})
        if options.output is not None:
            options.output.write_text(json.dumps(settings | {"runs": found}, indent=1) + "\n")
    print(*table(found, [variant.name for variant in variants]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
