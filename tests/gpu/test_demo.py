"""The demo checkpoint on a real GPU: the captions of pictures are those of a CPU in fp32."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from builders.build import main as build
from demo.scenes.generator import SceneGenerator
from demo.scenes.sprites import SPLIT_STYLES
from demo.splits import SPLITS
from mplug.checkpoint import load_checkpoint
from mplug.pipeline import Pipeline
from mplug.runtime.interface import THREADS_VARIABLE

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "demo"
SCENES = 60


@pytest.fixture(scope="module")
def scenes():
    """Pictures of a seed that training never uses."""
    size = load_checkpoint(CHECKPOINT)[0].config.vision.image_size
    images = SceneGenerator(SPLIT_STYLES, size=size, seed=SPLITS["test"].seed).batch(SCENES).images
    return [Image.fromarray(image) for image in images]


@pytest.fixture(scope="module")
def expected(scenes, tmp_path_factory):
    """Captions of a CPU in fp32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv(THREADS_VARIABLE, "4")  # of a server's many cores: more get in each other's way at this size
        return captions(repository("fp32", tmp_path_factory), scenes)


def repository(precision, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("demo") / precision
    assert build([str(CHECKPOINT), "--output", str(output), "--target", "torch", "--precision", precision]) == 0
    return output


def captions(folder: Path, scenes) -> list[str]:
    with Pipeline.open(folder) as pipeline:
        return [pipeline.caption(scene)[0].text for scene in scenes]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_captions_are_those_of_a_cpu(precision, scenes, expected, tmp_path_factory):
    """In fp32 all; in half precision one of 60 was another on an H200, one of 300 rounded so on a CPU (docs/gpu.md)."""
    found = captions(repository(precision, tmp_path_factory), scenes)
    assert len(set(expected)) > SCENES // 2  # they say something about the picture
    other = [pair for pair in zip(expected, found, strict=True) if pair[0] != pair[1]]
    sys.stderr.write(f"\n{precision}: {len(other)} of {SCENES} captions differ: {other}\n")
    assert len(other) <= (0 if precision == "fp32" else 3)
