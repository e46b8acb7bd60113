"""Draws the pictures and the video in ``examples/``, and lists their captions beside what the demo checkpoint says.

python demo/make_examples.py --repository build/demo
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

if __package__ in (None, ""):  # run as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.scenes.generator import Scene, SceneGenerator
from demo.scenes.sprites import HELD_OUT_STYLE, TRAIN_STYLES
from demo.scenes.videos import SceneVideo, VideoGenerator, encode_video
from mplug.pipeline import Pipeline, RepositoryError

EXAMPLES_DIR = Path(__file__).resolve().parents[1] / "examples"
SIDE = 256  # pixels; twice the side that the demo model sees, for people to look at
JPEG_QUALITY = 92
SEED = 24
VIDEO_STYLE = "noto"
VIDEO_SEED = 20
VIDEO_FRAMES = 16
FPS = 8
# Pictures per style: those that have every class, the held-out one, and the other hands that training draws.
PICTURES = {**dict.fromkeys(TRAIN_STYLES[:4], 2), HELD_OUT_STYLE: 4, **dict.fromkeys(TRAIN_STYLES[4:8], 1)}

README_HEAD = """# Pictures and a video to try

[tour.ipynb](tour.ipynb) is a notebook: caption, ask, find, search, compare and video, in its own process and through a
server. [langchain_chat.py](langchain_chat.py) asks through the [OpenAI-compatible endpoint](../docs/openai.md).

Emoji scenes with their true captions, drawn by `python demo/make_examples.py`, and what the demo checkpoint says of
each (OpenVINO, five beams), with its mistakes in bold. None of the exact pictures was trained on; nothing drawn by
Twemoji was trained on at all, and no video: it has no words for what moves. None was picked for its answer; how often
it errs is in [its card](../checkpoints/demo/README.md).

| file | art style | true caption | the demo checkpoint |
| --- | --- | --- | --- |
"""

README_TAIL = """
## Licences of the drawings

Changes made: rasterised, cropped, scaled, mirrored and placed on drawn backgrounds.

- noto, noto-v1: Noto Emoji, © Google Inc., Apache License 2.0
- fluent-flat, fluent-3d: Fluent Emoji, © Microsoft Corporation, MIT License
- fxemoji: Firefox OS Emoji, © Mozilla Foundation, Apache License 2.0
- streamline: Streamline Emojis, © Streamline, CC BY 4.0
- emojione: EmojiOne 2.3, © EmojiOne (Ranks.com Inc.), CC BY 4.0
- openclipart: Open Clip Art Library 0.18, public domain
- twemoji: Twemoji, © Twitter, Inc. and other contributors, CC BY 4.0

Sources, versions and licence texts: [`demo/emoji/NOTICE`](../demo/emoji/NOTICE).
"""


def draw_examples() -> list[tuple[str, Scene]]:
    """Return (style, scene) of every example: one and two groups by turns, or two, each style by itself."""
    examples = []
    for number, (style, count) in enumerate(PICTURES.items()):
        generator = SceneGenerator((style,), size=SIDE, max_groups=2, max_count=3, seed=SEED + number, pairs="any")
        for position in range(count):
            generator.group_weights = [1, 0] if position % 2 == 0 and count > 1 else [0, 1]
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


def write_examples(folder: Path, say: Callable[[Path], str]) -> list[Path]:
    """Write the pictures, every other one as JPEG, the video and ``README.md``; return the paths of the former.

    `say` captions a picture or a video.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, rows = [], []
    for number, (style, scene) in enumerate(draw_examples(), 1):
        # Pairs, so that both formats show one group and two.
        suffix = "png" if (number - 1) // 2 % 2 == 0 else "jpg"
        path = folder / f"scene-{number:02d}.{suffix}"
        options = {"quality": JPEG_QUALITY} if suffix == "jpg" else {"optimize": True}
        Image.fromarray(scene.image).save(path, **options)
        paths.append(path)
        rows.append(row(path, style, scene.caption, say))
    video = draw_video()
    paths.append(folder / "video-01.mp4")
    paths[-1].write_bytes(encode_video(video.frames, FPS))
    rows.append(row(paths[-1], VIDEO_STYLE, video.caption, say))
    (folder / "README.md").write_text(README_HEAD + "\n".join(rows) + "\n" + README_TAIL, encoding="utf-8")
    return paths


def row(path: Path, style: str, caption: str, say: Callable[[Path], str]) -> str:
    """Return a line of the table."""
    said = say(path)
    return f"| [{path.name}]({path.name}) | {style} | {caption} | {said if said == caption else f'**{said}**'} |"


def main() -> int:
    """Draw the examples and their table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=EXAMPLES_DIR)
    parser.add_argument(
        "--repository", type=Path, default=Path("build/demo"), help="the demo checkpoint, built (default: build/demo)"
    )
    arguments = parser.parse_args()
    try:
        with Pipeline.open(arguments.repository) as mplug:

            def say(path: Path) -> str:
                return (mplug.caption(video=path) if path.suffix == ".mp4" else mplug.caption(path))[0].text

            for path in write_examples(arguments.output, say):
                print(path)
    except RepositoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
