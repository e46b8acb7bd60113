"""Caption fresh emoji scenes through a running server and count what is right.

    python -m mplug.server build/demo --run builders/evaluate.py --url {grpc}

Object recall: the share of a scene's groups whose class the caption names. Exact: captions that equal
the true one, word for word. Scenes are drawn from a seed that training never uses.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image
from tqdm.asyncio import tqdm_asyncio

from builders.data.emoji_scenes import SceneGenerator
from builders.data.emoji_sprites import HELD_OUT_STYLE, TRAIN_STYLES
from builders.data.scene_grammar import exact_match, object_recall
from clients.client import AsyncClient

TEST_SEED = 90_000
CONCURRENCY = 16
SPLITS = {"training styles": TRAIN_STYLES, "Twemoji (held out)": (HELD_OUT_STYLE,)}


@dataclass(frozen=True)
class Score:
    """Shares of 1 over one split."""

    split: str
    scenes: int
    object_recall: float
    exact: float


async def evaluate_split(client: AsyncClient, split: str, count: int, max_groups: int) -> tuple[Score, list[list[str]]]:
    """Score one split; also every [truth, answer] pair."""
    scenes = SceneGenerator(SPLITS[split], max_groups=max_groups, seed=TEST_SEED).batch(count).scenes
    gate = asyncio.Semaphore(CONCURRENCY)

    async def caption(image: np.ndarray) -> str:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        async with gate:
            return (await client.caption(stream.getvalue()))[0].text

    answers = await tqdm_asyncio.gather(*(caption(scene.image) for scene in scenes), desc=split, disable=None)
    score = Score(
        split, count,
        float(np.mean([object_recall(answer, scene) for answer, scene in zip(answers, scenes, strict=True)])),
        float(np.mean([exact_match(answer, scene.caption) for answer, scene in zip(answers, scenes, strict=True)])),
    )
    return score, [[scene.caption, answer] for scene, answer in zip(scenes, answers, strict=True)]


async def evaluate(url: str, count: int, max_groups: int) -> tuple[list[Score], dict[str, list[list[str]]]]:
    """Score every split."""
    scores, pairs = [], {}
    async with AsyncClient(url) as client:
        for split in SPLITS:
            score, pairs[split] = await evaluate_split(client, split, count, max_groups)
            scores.append(score)
    return scores, pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="localhost:8001", help="gRPC HOST:PORT (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=500, help="per split (default: %(default)s)")
    parser.add_argument("--max-groups", type=int, default=2, choices=range(1, 5), help="kinds of objects in a scene")
    parser.add_argument("--output", type=Path, help="write scores and every caption to this JSON file")
    options = parser.parse_args()
    scores, pairs = asyncio.run(evaluate(options.url, options.scenes, options.max_groups))
    print(f"{'split':22s} {'scenes':>7s} {'object recall':>14s} {'exact':>7s}")
    for score in scores:
        print(f"{score.split:22s} {score.scenes:7d} {score.object_recall:14.1%} {score.exact:7.1%}")
    if options.output:
        document = {"scores": [asdict(score) for score in scores], "captions": pairs}
        options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
