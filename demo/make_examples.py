"""Draws the pictures and the video in ``examples/`` and lists their captions.

python demo/make_examples.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

if __package__ in (None, ""):  # run as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.scenes.generator import Scene, SceneGenerator
from demo.scenes.sprites import HELD_OUT_STYLE, TRAIN_STYLES
from demo.scenes.videos import SceneVideo, VideoGenerator, encode_video

EXAMPLES_DIR = Path(__file__).resolve().parents[1] / "examples"
SIDE = 256  # pixels; twice the side that the demo model sees, for people to look at
JPEG_QUALITY = 92
SEED = 24
VIDEO_STYLE = "noto"
VIDEO_SEED = 20
VIDEO_FRAMES = 16
FPS = 8
# Pictures per style; the held-out one comes last.
PICTURES = {**dict.fromkeys(TRAIN_STYLES[:4], 2), HELD_OUT_STYLE: 4}  # the styles that have every class

README_HEAD = """# Pictures and a video to try

[tour.ipynb](tour.ipynb) is a notebook: caption, ask, find, search, compare and video, in its own process and through a
server. [langchain_chat.py](langchain_chat.py) asks through the [OpenAI-compatible endpoint](../docs/openai.md).

Emoji scenes with their true captions, drawn by `python demo/make_examples.py`. None of the exact
pictures was trained on; nothing drawn by Twemoji was trained on at all, and no video.

| file | art style | true caption |
| --- | --- | --- |
"""

README_TAIL = """
## Licences of the drawings

Changes made: rasterised, cropped, scaled, mirrored and placed on drawn backgrounds.

- noto, noto-v1: Noto Emoji, © Google Inc., Apache License 2.0
- fluent-flat, fluent-3d: Fluent Emoji, © Microsoft Corporation, MIT License
- twemoji: Twemoji, © Twitter, Inc. and other contributors, CC BY 4.0

Sources, versions and licence texts: [`demo/emoji/NOTICE`](../demo/emoji/NOTICE).
"""


def draw_examples() -> list[tuple[str, Scene]]:
    """Return (style, scene) of every example: one and two groups by turns, each style by itself."""
    examples = []
    for number, (style, count) in enumerate(PICTURES.items()):
        generator = SceneGenerator((style,), size=SIDE, max_groups=2, max_count=3, seed=SEED + number, pairs="any")
        for position in range(count):
            generator.group_weights = [1, 0] if position % 2 == 0 else [0, 1]
            examples.append((style, generator.scene()))
    return examples


def draw_video() -> SceneVideo:
    """Return the video: two groups, of which one moves."""
    generator = VideoGenerator((VIDEO_STYLE,), size=SIDE, frames=VIDEO_FRAMES, seed=VIDEO_SEED)
    generator.two_groups = 1.0
    while True:
        video = generator.video()
        if video.steady and any(track.motion == "still" for track in video.tracks):
            return video


def write_examples(folder: Path) -> list[Path]:
    """Write the pictures, every other one as JPEG, the video and ``README.md``; return the paths of the former."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, rows = [], []
    for number, (style, scene) in enumerate(draw_examples(), 1):
        # Pairs, so that both formats show one group and two.
        suffix = "png" if (number - 1) // 2 % 2 == 0 else "jpg"
        path = folder / f"scene-{number:02d}.{suffix}"
        options = {"quality": JPEG_QUALITY} if suffix == "jpg" else {"optimize": True}
        Image.fromarray(scene.image).save(path, **options)
        paths.append(path)
        rows.append(f"| [{path.name}]({path.name}) | {style} | {scene.caption} |")
    video = draw_video()
    paths.append(folder / "video-01.mp4")
    paths[-1].write_bytes(encode_video(video.frames, FPS))
    rows.append(f"| [{paths[-1].name}]({paths[-1].name}) | {VIDEO_STYLE} | {video.caption} |")
    (folder / "README.md").write_text(README_HEAD + "\n".join(rows) + "\n" + README_TAIL, encoding="utf-8")
    return paths


def main() -> None:
    """Draw the examples and their table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=EXAMPLES_DIR)
    arguments = parser.parse_args()
    for path in write_examples(arguments.output):
        print(path)


if __name__ == "__main__":
    main()
