"""Photographs instead of drawings: cut-outs of real things, pasted on real photographs, for a test split of its own.

    python demo/scenes/photographs.py      # fetches 223 MB, writes build/photographs (4 MB)
    python builders/evaluate.py --checkpoint checkpoints/demo --split test-photographs --task caption vqa grounding

The cut-outs are those of Tux Paint (Debian: ``tuxpaint-stamps-default``, GPL-2), the backdrops those of two desktops
(``mate-backgrounds``, GPL-2+; ``lomiri-wallpapers-16.04``, CC BY 4.0, CC BY-SA 4.0, CC0). None of them is part of this
repository: apt fetches them (no root, nothing is installed), and what is made of them stays outside git.
``demo/emoji/photographs.json`` says, by eye, which cut-out shows which class, and which part of a backdrop is free of
things that have a class.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import cv2
import numpy as np
from PIL import Image

if __package__ in (None, ""):  # run as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo.scenes.art_packages import fetch_debian
from demo.scenes.classes import DATA_DIR, load_classes
from demo.scenes.sprites import normalise, write_atlas, write_index

PHOTOGRAPHS = DATA_DIR.parents[1] / "build" / "photographs"
MAPPING = DATA_DIR / "photographs.json"
#: Two "styles", because a style has one picture of a thing: the second holds another cut-out of the same class.
PHOTO_STYLES = ("photographs", "photographs-more")
BACKDROPS = "backdrops"  # folder of the backdrops in the folder that is written
BACKDROP_SIDE = 256  # shorter side of a stored backdrop, pixels
STAMPS = "tuxpaint-stamps-default"
SMALLEST_STAMP = 48  # longer side of a cut-out, pixels: it fills up to half of a scene of 128
STAMP_FOLDER = "usr/share/tuxpaint/stamps/"
BACKDROP_FOLDER = "usr/share/backgrounds/"
LARGEST_CUT = 1.0  # side of the square cut out of a backdrop, as a share of its shorter side …
SMALLEST_CUT = 0.55  # … and the least


@dataclass(frozen=True)
class Stamp:
    """A cut-out: its file in the package, and the drawing that it stands for."""

    file: str
    style: str  # one of `PHOTO_STYLES`
    codepoint: str


@dataclass(frozen=True)
class Backdrop:
    """A photograph; ``part`` is what is used of it: x0, y0, x1, y1 as shares of width and height."""

    package: str
    file: str
    part: tuple[float, float, float, float]


class PhotoBackdrops:
    """Seeded source of backdrops cut out of photographs, uint8 [size, size, 3] RGB."""

    def __init__(self, size: int, random: Random, folder: Path) -> None:
        self.size = size
        self.random = random
        self._pictures = [_read_rgb(path) for path in sorted(folder.glob("*.png"))]
        if not self._pictures:
            raise ValueError(f"no backdrop (*.png) in {folder}")

    def draw(self) -> np.ndarray:
        """Return a random square of a random photograph, mirrored half of the time."""
        random = self.random
        picture = random.choice(self._pictures)
        height, width = picture.shape[:2]
        side = round(min(height, width) * random.uniform(SMALLEST_CUT, LARGEST_CUT))
        top, left = random.randint(0, height - side), random.randint(0, width - side)
        cut = picture[top : top + side, left : left + side]
        interpolation = cv2.INTER_AREA if side > self.size else cv2.INTER_LINEAR
        cut = cv2.resize(cut, (self.size, self.size), interpolation=interpolation)
        return cv2.flip(cut, 1) if random.random() < 0.5 else cut


def _read_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def read_mapping(path: Path = MAPPING) -> tuple[list[Stamp], list[Backdrop]]:
    """Read which cut-outs and backdrops are used.

    The first cut-out of a drawing goes to the first of `PHOTO_STYLES`, the second to the second. Raises
    ``ValueError`` for a class or colour that does not exist, and for a third cut-out of one drawing.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    drawings = {(c.name, d.colour): d.codepoint for c in load_classes() for d in reversed(c.drawings)}
    stamps: list[Stamp] = []
    for file, shown in document["stamps"].items():
        wanted = shown["class"], shown.get("colour")
        if wanted not in drawings:
            raise ValueError(f"{path}: {file} is said to show {wanted}, which is no class (name, colour) of ours")
        codepoint = drawings[wanted]
        before = sum(stamp.codepoint == codepoint for stamp in stamps)
        if before == len(PHOTO_STYLES):
            raise ValueError(f"{path}: {file} is cut-out {before + 1} of {wanted}; there is room for {before}")
        stamps.append(Stamp(file, PHOTO_STYLES[before], codepoint))
    backdrops = [
        Backdrop(package, file, tuple(part))
        for package, files in document["backdrops"].items()
        for file, part in files.items()
    ]
    return stamps, backdrops


def write_photographs(
    output: Path,
    stamp_files: dict[str, bytes],
    backdrop_files: dict[str, bytes],
    stamps: list[Stamp],
    backdrops: list[Backdrop],
) -> None:
    """Write the atlases of the cut-outs, their ``index.json`` and the backdrops into ``output``.

    ``stamp_files`` and ``backdrop_files``: encoded pictures by the names in ``stamps`` and ``backdrops``.
    Raises ``ValueError`` for a cut-out whose longer side is below 48 pixels.
    """
    (output / BACKDROPS).mkdir(parents=True, exist_ok=True)
    index = {}
    for style in PHOTO_STYLES:
        sprites = {}
        for stamp in stamps:
            if stamp.style == style:
                picture = Image.open(io.BytesIO(stamp_files[stamp.file]))
                if max(picture.size) < SMALLEST_STAMP:
                    raise ValueError(f"{stamp.file}: {picture.size} pixels; at least {SMALLEST_STAMP} are needed")
                sprites[stamp.codepoint] = normalise(picture)
        index[style] = write_atlas(sprites, output / f"{style}.webp")
    write_index(output / "index.json", index, dict.fromkeys(PHOTO_STYLES, STAMPS))
    for number, backdrop in enumerate(backdrops):
        picture = Image.open(io.BytesIO(backdrop_files[backdrop.file])).convert("RGB")
        x0, y0, x1, y1 = backdrop.part
        picture = picture.crop(
            tuple(round(share * side) for share, side in zip((x0, y0, x1, y1), 2 * picture.size, strict=True))
        )
        scale = BACKDROP_SIDE / min(picture.size)
        size = round(picture.width * scale), round(picture.height * scale)
        picture.resize(size, Image.Resampling.LANCZOS).save(output / BACKDROPS / f"{number:02}.png")


def main() -> None:
    """Fetch the packages and write the folder that the split draws from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, help="folder of .deb files fetched before; new ones are kept there")
    arguments = parser.parse_args()
    if arguments.packages is not None and not arguments.packages.is_dir():
        parser.error(f"--packages {arguments.packages}: no such folder")
    stamps, backdrops = read_mapping()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.packages or Path(temporary)
            stamp_files = fetch_debian(STAMPS, None, folder, STAMP_FOLDER, {stamp.file for stamp in stamps})
            backdrop_files: dict[str, bytes] = {}
            for package in dict.fromkeys(backdrop.package for backdrop in backdrops):
                names = {backdrop.file for backdrop in backdrops if backdrop.package == package}
                backdrop_files |= fetch_debian(package, None, folder, BACKDROP_FOLDER, names)
    except RuntimeError as error:
        sys.exit(str(error))
    write_photographs(PHOTOGRAPHS, stamp_files, backdrop_files, stamps, backdrops)
    print(f"{PHOTOGRAPHS}: {len(stamps)} cut-outs and {len(backdrops)} backdrops")


if __name__ == "__main__":
    main()
