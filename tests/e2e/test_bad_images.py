"""Pictures of every kind, sent to a real server: odd ones are captioned as they look, broken ones are refused."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from wire import PROTOCOLS, Wire, connect, hypotheses

from mplug.server.command import TritonServer

GOLDEN = Path(__file__).parents[1] / "parity" / "data" / "caption"
GOOD = (GOLDEN / "image2.png").read_bytes()
GOOD_IDS = json.loads((GOLDEN / "expected.json").read_text())["beam_search"][0]["nbest"][2][0]["ids"]


@pytest.fixture(params=PROTOCOLS)
def wire(request: pytest.FixtureRequest, caption_server: TritonServer) -> Iterator[Wire]:
    """A connection whose server still answers rightly when the test is over."""
    with connect(caption_server, request.param) as wire:
        yield wire
        assert [ids for ids, _ in hypotheses(wire.ask(IMAGE=GOOD))] == [GOOD_IDS]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo() -> Image.Image:
    """A golden picture, RGB."""
    return Image.open(io.BytesIO(GOOD)).convert("RGB")


def png(width: int, height: int, depth: int, colours: int, rows: bytes | None) -> bytes:
    """A PNG written by hand: what Pillow does not write (16-bit colour), or with nothing behind its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    body = b"" if rows is None else chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


# ------------------------------------------------------------------------ what looks the same reads the same


def grey() -> tuple[bytes, Image.Image]:
    image = photo().convert("L")
    return encoded(image), image.convert("RGB")


def grey_of_sixteen_bits() -> tuple[bytes, Image.Image]:
    image = photo().convert("L")
    deep = np.asarray(image).astype(np.uint16) * 257
    return encoded(Image.fromarray(deep)), image.convert("RGB")


def colour_of_sixteen_bits() -> tuple[bytes, Image.Image]:
    image = photo()
    deep = (np.asarray(image).astype(">u2") * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    return png(image.width, image.height, 16, 2, rows), image


def one_bit() -> tuple[bytes, Image.Image]:
    image = photo().convert("1")
    return encoded(image), image.convert("RGB")


def palette() -> tuple[bytes, Image.Image]:
    image = photo().quantize(64)
    return encoded(image), image.convert("RGB")


def cmyk() -> tuple[bytes, Image.Image]:
    """Inks that are the inverse of the light, without black: back to the very same RGB."""
    inks = Image.merge("CMYK", [*Image.fromarray(255 - np.asarray(photo())).split(), Image.new("L", photo().size)])
    return encoded(inks, "TIFF"), photo()


def cmyk_jpeg() -> tuple[bytes, Image.Image]:
    data = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    return data, Image.open(io.BytesIO(data)).convert("RGB")


def transparent() -> tuple[bytes, Image.Image]:
    """A hole with noise behind it, on white."""
    image, pixels = photo(), np.asarray(photo()).copy()
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[10:30, 10:40] = 0
    hidden = pixels.copy()
    hidden[alpha == 0] = np.random.default_rng(0).integers(0, 256, hidden[alpha == 0].shape)
    pixels[alpha == 0] = 255
    image = Image.fromarray(np.dstack([hidden, alpha]))
    return encoded(image), Image.fromarray(pixels)


def transparent_palette() -> tuple[bytes, Image.Image]:
    image = photo().quantize(8)
    seen = np.asarray(image.convert("RGB")).copy()
    seen[np.asarray(image) == 3] = 255
    return encoded(image, transparency=3), Image.fromarray(seen)


def rotated_by_exif(orientation: int, transpose: Image.Transpose) -> Callable[[], tuple[bytes, Image.Image]]:
    def make() -> tuple[bytes, Image.Image]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(photo().crop((0, 0, 64, 40)), "JPEG", quality=95, exif=exif.tobytes())
        return data, Image.open(io.BytesIO(data)).transpose(transpose)

    return make


def animation() -> tuple[bytes, Image.Image]:
    """The first frame counts."""
    first = photo().quantize(64)
    frames = [Image.new("P", first.size, colour) for colour in (1, 2)]
    data = encoded(first, "GIF", save_all=True, append_images=frames)
    return data, Image.open(io.BytesIO(data)).convert("RGB")


KINDS: dict[str, Callable[[], tuple[bytes, Image.Image]]] = {
    "grey": grey,
    "grey, 16 bits": grey_of_sixteen_bits,
    "colour, 16 bits": colour_of_sixteen_bits,
    "one bit": one_bit,
    "palette": palette,
    "CMYK": cmyk,
    "CMYK JPEG": cmyk_jpeg,
    "transparent": transparent,
    "transparent palette": transparent_palette,
    "upside down": rotated_by_exif(3, Image.Transpose.ROTATE_180),
    "lying on its side": rotated_by_exif(6, Image.Transpose.ROTATE_270),
    "mirrored and lying": rotated_by_exif(7, Image.Transpose.TRANSVERSE),
    "animation": animation,
    "WebP": lambda: (encoded(photo(), "WEBP", lossless=True), photo()),
    "BMP": lambda: (encoded(photo(), "BMP"), photo()),
    "progressive JPEG": lambda: (
        (data := encoded(photo(), "JPEG", progressive=True)),
        Image.open(io.BytesIO(data)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_captioned_as_its_plain_rgb(caption_server: TritonServer, kind: str) -> None:
    data, seen = KINDS[kind]()
    assert seen.mode == "RGB"
    with connect(caption_server, "grpc") as wire:
        odd, plain = (hypotheses(wire.ask(IMAGE=each, NUM_RETURN=5)) for each in (data, encoded(seen)))
    assert odd == plain


def test_the_kinds_are_told_apart(caption_server: TritonServer) -> None:
    """The comparison above means something: other pixels get other scores."""
    with connect(caption_server, "grpc") as wire:
        scores = {hypotheses(wire.ask(IMAGE=encoded(KINDS[kind]()[1])))[0][1] for kind in ("grey", "transparent")}
        scores |= {hypotheses(wire.ask(IMAGE=GOOD))[0][1]}
    assert len(scores) == 3


def test_one_pixel(wire: Wire) -> None:
    """A single pixel is a picture of one colour."""
    colour = (200, 30, 90)
    pixel, square = (encoded(Image.new("RGB", size, colour)) for size in ((1, 1), (64, 64)))
    assert hypotheses(wire.ask(IMAGE=pixel)) == hypotheses(wire.ask(IMAGE=square))


def test_extreme_shapes(wire: Wire) -> None:
    for size in ((16_000, 1), (1, 16_000)):
        assert wire.ask(IMAGE=encoded(Image.new("RGB", size, "red")))["CAPTION"].shape == (1,)


# --------------------------------------------------------------------------------------------- refusals


def truncated_jpeg() -> bytes:
    data = encoded(photo(), "JPEG", quality=95)
    return data[: len(data) // 2]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is empty"),
    "text": (lambda: b"GET / HTTP/1.1\r\n\r\n", "not an image"),
    "zeros": (lambda: bytes(1000), "not an image"),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "truncated JPEG": (truncated_jpeg, "truncated or damaged"),
    "JPEG's first bytes": (lambda: encoded(photo(), "JPEG")[:20], "truncated or damaged"),
    "truncated PNG": (lambda: GOOD[: len(GOOD) * 2 // 3], "truncated or damaged"),
    "PNG without pixels": (lambda: png(64, 64, 8, 2, None), "truncated or damaged"),
    "32-bit samples": (
        lambda: encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"),
        "32-bit samples",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_refused_with_the_reason(wire: Wire, kind: str) -> None:
    make, complaint = BROKEN[kind]
    wire.assert_refused("IMAGE", complaint, IMAGE=make())


def huge_png(side: int, whole: bool) -> bytes:
    """Black and white, `side` pixels square; a few kilobytes. With `whole`, every pixel is really there."""
    return png(side, side, 1, 0, bytes(1 + (side + 7) // 8) * side if whole else None)


def huge_jpeg(side: int) -> bytes:
    """A small JPEG whose header says it is large."""
    data = bytearray(encoded(photo(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def test_too_large_by_its_header_is_refused_before_it_is_decoded(wire: Wire, caption_server: TritonServer) -> None:
    """20,000 × 20,000 pixels are 400 MB at least once decoded: the models' memory must show none of it."""
    before = peak_memory(caption_server)
    for data in (huge_png(20_000, whole=True), huge_png(20_000, whole=False), huge_jpeg(20_000)):
        wire.assert_refused("IMAGE", r"more pixels than|20,000 × 20,000 pixels", IMAGE=data)
    wire.assert_refused("IMAGE", r"9,000 × 9,000 pixels", IMAGE=huge_png(9_000, whole=True))
    assert peak_memory(caption_server) - before < 64 * 2**20


def test_too_many_bytes(wire: Wire) -> None:
    wire.assert_refused("IMAGE", "bytes, at most", IMAGE=GOOD + bytes(33 * 2**20))


def peak_memory(server: TritonServer) -> int:
    """The most that the models' processes ever held, bytes, summed."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line)
        except OSError:  # ended meanwhile
            continue
        if int(fields["PPid"]) == server.pid and "VmHWM" in fields:
            total += int(fields["VmHWM"].split()[0]) * 1024
    return total
