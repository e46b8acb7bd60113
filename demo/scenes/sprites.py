"""Artwork from npm and Debian packages → one small sprite atlas per style, committed to the repository.

    python demo/scenes/sprites.py                      # all that is committed: demo/emoji/*.webp and index.json
    python demo/scenes/sprites.py --styles emojione    # one style
    python demo/scenes/sprites.py --styles openclipart openclipart-more --packages FOLDER

Needs ``resvg_py``, and about a minute, most of it download: ``npm`` for the emoji, ``apt-get`` and ``dpkg-deb`` for
Open Clip Art (no root, nothing is installed). Where apt knows no Debian sources, put ``openclipart-svg_*_all.deb`` of
any Debian mirror into FOLDER. Everyone else only calls ``load_sprites``.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

if __package__ in (None, ""):  # run as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo.scenes.art_packages import OPENCLIPART, StyleSource
from demo.scenes.classes import DATA_DIR, Drawing, load_classes

SPRITE_SIDE = 72  # long side of a stored sprite, pixels
RENDER_SIDE = 288  # SVGs are drawn at four times that, then scaled down, so that edges are smooth
RENDER_LIMIT = 4000  # widest page that is drawn for the sake of a small drawing on it, pixels
SVG_DPI = 96  # pixels per inch, of drawings whose size is in millimetres or points; CSS says 96
ALPHA_VISIBLE = 40  # a pixel counts as part of the sprite above this alpha (of 255)
ATLAS_COLUMNS = 17

INDEX_FILE = "index.json"
#: Drawings of the sets that know no code points and have names of their own, `{style: {codepoint: icon or file}}`;
#: chosen by eye.
ICON_NAMES_FILE = "icon_names.json"
#: What the fixed splits, and all that is compared with them, draw as "training styles". It stays as it is when
#: training gets more styles: the pictures, and so the figures measured on them, would be others.
SPLIT_STYLES = ("noto", "noto-v1", "fluent-flat", "fluent-3d", "fxemoji", "streamline")
#: What training draws. Both Fluents are one design; the two of Open Clip Art are by some sixty artists, and hold 151
#: and 64 of the 250 classes.
TRAIN_STYLES = (*SPLIT_STYLES, "emojione", "openclipart", "openclipart-more")
HELD_OUT_STYLE = "twemoji"  # never trained on


SOURCES: dict[str, StyleSource] = {
    "noto": StyleSource("@iconify-json/noto", "1.2.9", "noto"),
    "noto-v1": StyleSource("@iconify-json/noto-v1", "1.2.5", "noto-v1"),
    "fluent-flat": StyleSource("@iconify-json/fluent-emoji-flat", "1.2.6", "fluent-emoji-flat"),
    "fluent-3d": StyleSource("@lobehub/fluent-emoji-3d", "1.1.0", "fluent-3d"),
    "fxemoji": StyleSource("@iconify-json/fxemoji", "1.2.2", "fxemoji"),
    "streamline": StyleSource("@iconify-json/streamline-emojis", "1.2.4", "streamline"),
    "emojione": StyleSource("@iconify-json/emojione", "1.2.3", "emojione"),
    "openclipart": StyleSource("openclipart-svg", "1:0.18+dfsg-19", "openclipart", folder=OPENCLIPART),
    "openclipart-more": StyleSource("openclipart-svg", "1:0.18+dfsg-19", "openclipart-more", folder=OPENCLIPART),
    "twemoji": StyleSource("@iconify-json/twemoji", "1.2.5", "twemoji"),
    "openmoji": StyleSource("@iconify-json/openmoji", "1.2.29", "openmoji", committed=False),
}

# Drawings left out when loading: (style, code point). The older Noto's "red" book is pink; EmojiOne's "red" heart is
# pink, its "orange" book yellow, its "white" circle and square are grey.
OFF_COLOUR = frozenset(
    {
        ("noto-v1", "1f4d5"),
        ("emojione", "2764"),
        ("emojione", "1f4d9"),
        ("emojione", "26aa"),
        ("emojione", "2b1c"),
    }
)


def load_sprites(styles: Sequence[str], folder: Path = DATA_DIR) -> dict[str, dict[str, np.ndarray]]:
    """Return ``{style: {codepoint: sprite}}``; a sprite is RGBA uint8 [h, w, 4], long side 72 px.

    Sprites are cropped tight to alpha > 40; colours are not multiplied by alpha. Not every style
    has every drawing. Raises ``ValueError`` for a style that is not in ``folder``.
    """
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["styles"]
    for style in styles:
        if style not in index:
            raise ValueError(f"no sprites of style {style!r} in {folder}; there are: {', '.join(index)}")
    return {style: _load_style(folder / f"{style}.webp", index[style]) for style in styles}


def _load_style(path: Path, places: dict[str, list[int]]) -> dict[str, np.ndarray]:
    with Image.open(path) as image:
        atlas = np.asarray(image.convert("RGBA"))
    return {
        codepoint: atlas[y : y + height, x : x + width].copy()
        for codepoint, (x, y, width, height) in places.items()
        if (path.stem, codepoint) not in OFF_COLOUR
    }


def normalise(rendered: Image.Image) -> np.ndarray:
    """Crop an RGBA picture to its visible pixels and scale it to a 72 px long side.

    Returns RGBA uint8 [h, w, 4] that is tight to alpha > 40. Raises ``ValueError`` on a blank picture.
    """
    sprite = rendered.convert("RGBA")
    sprite = sprite.crop(_visible_box(np.asarray(sprite)))
    scale = SPRITE_SIDE / max(sprite.size)
    size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
    # Pillow multiplies by alpha while it resizes RGBA: no dark fringe.
    pixels = np.array(sprite.resize(size, Image.Resampling.LANCZOS))
    left, top, right, bottom = _visible_box(pixels)
    pixels = pixels[top:bottom, left:right]
    pixels[pixels[..., 3] == 0] = 0  # invisible colours only cost bytes
    return pixels


def _visible_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    visible = pixels[..., 3] > ALPHA_VISIBLE
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    if not rows.size:
        raise ValueError("the drawing has no visible pixel")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _file_renderer(files: dict[str, bytes], chosen: dict[str, str]) -> Callable[[Drawing], Image.Image | None]:
    """Renderer of SVG files, of which ``chosen`` names one for each code point that has one."""

    def render(drawing: Drawing) -> Image.Image | None:
        return _drawn_large(files[chosen[drawing.codepoint]]) if drawing.codepoint in chosen else None

    return render


def _drawn_large(svg: bytes) -> Image.Image:
    """Draw an SVG so large that what is visible is about `RENDER_SIDE` long: it may be a small part of a page."""
    import resvg_py  # only the people who rebuild the atlases need it

    def draw(width: int) -> Image.Image:
        content = resvg_py.svg_to_bytes(svg_string=svg.decode(), width=width, dpi=SVG_DPI)
        return Image.open(io.BytesIO(bytes(content))).convert("RGBA")

    page = draw(RENDER_SIDE)
    left, top, right, bottom = _visible_box(np.asarray(page))
    return draw(min(RENDER_LIMIT, RENDER_SIDE * RENDER_SIDE // max(right - left, bottom - top)))


def _webp_renderer(files: dict[str, bytes]) -> Callable[[Drawing], Image.Image | None]:
    def render(drawing: Drawing) -> Image.Image | None:
        for stem in (drawing.codepoint, f"{drawing.codepoint}-fe0f"):
            if (content := files.get(f"assets/{stem}.webp")) is not None:
                return Image.open(io.BytesIO(content))
        return None

    return render


def _iconify_renderer(
    files: dict[str, bytes], chosen: dict[str, str] | None
) -> Callable[[Drawing], Image.Image | None]:
    """Renderer of an Iconify package; ``chosen`` names its icons by code point where the package cannot."""
    import resvg_py  # only the people who rebuild the atlases need it

    icon_set = json.loads(files["icons.json"])
    icons, aliases = icon_set["icons"], icon_set.get("aliases", {})
    names = json.loads(files["chars.json"]) if chosen is None else chosen

    def render(drawing: Drawing) -> Image.Image | None:
        if chosen is not None and drawing.codepoint not in chosen:
            return None
        name = names.get(drawing.codepoint) or names.get(f"{drawing.codepoint}-fe0f")
        if name is None:  # the oldest set has no code points, but its names are the Unicode labels
            name = re.sub(r"[^a-z0-9]+", "-", drawing.label.lower())
        name = aliases.get(name, {}).get("parent", name)
        if name not in icons:
            return None
        icon = icons[name]
        width = icon.get("width", icon_set.get("width", 16))
        height = icon.get("height", icon_set.get("height", 16))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
        )
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDER_SIDE))))

    return render


def render_style(style: str, folder: Path) -> dict[str, np.ndarray]:
    """Fetch one style's package into ``folder`` and render all its drawings, ``{codepoint: sprite}``."""
    source = SOURCES[style]
    chosen = json.loads((DATA_DIR / ICON_NAMES_FILE).read_text(encoding="utf-8")).get(style)
    files = source.fetch(folder, set(chosen.values()) if chosen else None)
    if source.folder:
        render = _file_renderer(files, chosen)
    else:
        render = _iconify_renderer(files, chosen) if "icons.json" in files else _webp_renderer(files)
    sprites: dict[str, np.ndarray] = {}
    for emoji_class in tqdm(load_classes(), desc=style, unit="class"):
        if source.vendor not in emoji_class.vendors:
            continue  # another object under the same name, or another colour
        for drawing in emoji_class.drawings:
            if (picture := render(drawing)) is not None:
                sprites[drawing.codepoint] = normalise(picture)
            elif chosen is None:
                print(f"{style} has no {drawing.label} ({drawing.codepoint})", file=sys.stderr)
    return sprites


def write_atlas(sprites: dict[str, np.ndarray], path: Path) -> dict[str, tuple[int, int, int, int]]:
    """Write sprites into one lossless WebP of 72 px cells; return their (x, y, width, height) in pixels."""
    rows = -(-len(sprites) // ATLAS_COLUMNS)
    atlas = np.zeros((rows * SPRITE_SIDE, ATLAS_COLUMNS * SPRITE_SIDE, 4), np.uint8)
    places: dict[str, tuple[int, int, int, int]] = {}
    for position, (codepoint, sprite) in enumerate(sprites.items()):
        y, x = (SPRITE_SIDE * cell for cell in divmod(position, ATLAS_COLUMNS))
        height, width = sprite.shape[:2]
        atlas[y : y + height, x : x + width] = sprite
        places[codepoint] = (x, y, width, height)
    # Lossless WebP: a fifth smaller than the best PNG of the same pixels.
    Image.fromarray(atlas).save(path, lossless=True, quality=90, method=4)
    return places


def build_atlases(styles: Sequence[str], output: Path, packages: Path | None = None) -> None:
    """Render ``styles`` into ``output``: a ``STYLE.webp`` each, and their places into ``index.json``.

    ``packages``: a folder that keeps the downloaded packages, and where a Debian package may lie already.
    """
    output.mkdir(parents=True, exist_ok=True)
    index_path = output / INDEX_FILE
    index = json.loads(index_path.read_text(encoding="utf-8"))["styles"] if index_path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for style in styles:
            index[style] = write_atlas(render_style(style, packages or Path(folder)), output / f"{style}.webp")
    write_index(index_path, index, {style: f"{SOURCES[style].package}@{SOURCES[style].version}" for style in index})


def write_index(path: Path, index: Mapping[str, Mapping[str, Sequence[int]]], sources: Mapping[str, str]) -> None:
    """Write the places of sprites, ``{style: {codepoint: (x, y, width, height)}}``, and the styles' packages."""
    lines = [
        f"{json.dumps(style)}: {{\n"
        + ",\n".join(f"{json.dumps(code)}: {json.dumps(list(place))}" for code, place in index[style].items())
        + "\n}"
        for style in sorted(index)
    ]
    packages = {style: sources[style] for style in sorted(index)}
    head = f'{{"sprite_side": {SPRITE_SIDE},\n"packages": {json.dumps(packages)},\n"styles": {{\n'
    path.write_text(head + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def main() -> None:
    """Rebuild the committed atlases, or render chosen styles into another folder."""
    committed = [style for style, source in SOURCES.items() if source.committed]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="+", choices=sorted(SOURCES), default=committed)
    parser.add_argument("--output", type=Path, default=DATA_DIR)
    parser.add_argument("--packages", type=Path, help="folder of packages fetched before; new ones are kept there")
    arguments = parser.parse_args()
    if arguments.packages is not None and not arguments.packages.is_dir():
        parser.error(f"--packages {arguments.packages}: no such folder")
    for style in arguments.styles:
        if not SOURCES[style].committed and arguments.output.resolve() == DATA_DIR:
            parser.error(f"{style} is share-alike and stays out of the repository: name an --output folder")
    build_atlases(arguments.styles, arguments.output, arguments.packages)


if __name__ == "__main__":
    main()
