"""Pictures in memory and on disk: client and server see the same pixels, and refuse the same."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clients.client import ClientError, calls, images
from mplug.errors import InvalidRequest
from mplug.inputs.images import decode_image

RANDOM = np.random.default_rng(0)
GREY16 = RANDOM.integers(0, 2**16, (5, 7)).astype(np.uint16)
COLOURS = RANDOM.integers(0, 256, (5, 7, 4)).astype(np.uint8)


def sent(image: Image.Image) -> np.ndarray:
    """What the server sees of a picture in memory."""
    return np.asarray(decode_image(calls.caption(image).inputs["IMAGE"][0]))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def odd_exif() -> bytes:
    """EXIF with an XResolution that is text and an orientation of 6, big-endian, as a phone wrote it."""
    entries = struct.pack(">HHII", 0x0112, 3, 1, 6 << 16) + struct.pack(">HHI4s", 0x011A, 2, 3, b"72\0\0")
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + b"\0\0\0\0"


def profile_chunk(size: int) -> bytes:
    """An iCCP chunk of a profile of `size` bytes."""
    body = b"iCCP" + b"name\0\0" + zlib.compress(bytes(size))
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def with_chunk(png: bytes, chunk: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return png[:33] + chunk + png[33:]


OPAQUE = Image.fromarray(COLOURS[..., :3])
CLEAR = Image.fromarray(COLOURS)
FILES = {
    "RGB.png": encoded(OPAQUE, "PNG"),
    "1.png": encoded(OPAQUE.convert("1"), "PNG"),
    "L.png": encoded(OPAQUE.convert("L"), "PNG"),
    "LA.png": encoded(CLEAR.convert("LA"), "PNG"),
    "P.png": encoded(OPAQUE.convert("P"), "PNG"),
    "P with a transparent entry.png": encoded(OPAQUE.convert("P"), "PNG", transparency=3),
    "RGB with a transparent colour.png": encoded(OPAQUE, "PNG", transparency=tuple(COLOURS[0, 0, :3].tolist())),
    "RGBA.png": encoded(CLEAR, "PNG"),
    "RGBA.webp": encoded(CLEAR, "WEBP", lossless=True),
    "16 bit.png": encoded(Image.fromarray(GREY16), "PNG"),
    "16 bit with a transparent grey.png": encoded(Image.fromarray(GREY16), "PNG", transparency=int(GREY16[1, 1])),
    "16 bit.tif": encoded(Image.fromarray(GREY16), "TIFF"),
    "16 bit big-endian.tif": encoded(Image.fromarray(GREY16.astype(">u2")), "TIFF"),
    "16 bit.pgm": b"P5 7 5 65535\n" + GREY16.astype(">u2").tobytes(),
    "CMYK.jpg": encoded(OPAQUE.convert("CMYK"), "JPEG"),
    "odd EXIF.jpg": encoded(OPAQUE, "JPEG", exif=odd_exif()),
    "odd EXIF.png": encoded(OPAQUE, "PNG", exif=odd_exif()),
    "turned.tif": encoded(OPAQUE, "TIFF", tiffinfo={0x0112: 6}),
    "animated.gif": encoded(OPAQUE, "GIF", save_all=True, append_images=[OPAQUE.rotate(90)]),
    "a.bmp": encoded(OPAQUE, "BMP"),
}
PHOTO = encoded(Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3)).astype(np.uint8)), "JPEG")
#: Files that viewers show, although something is wrong with them.
DAMAGED = {
    "checksum.png": with_chunk(FILES["RGB.png"], b"\0\0\0\x09pHYs\0\0\x0b\x13\0\0\x0b\x13\x01damn"),
    "large profile.png": with_chunk(FILES["RGB.png"], profile_chunk(2 << 20)),
    "no end.jpg": PHOTO[:-2],
}


@pytest.mark.parametrize("name", list(FILES))
def test_client_and_server_see_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    expected = np.asarray(decode_image(FILES[name]))
    np.testing.assert_array_equal(sent(Image.open(path)), expected)
    loaded = Image.open(path)
    loaded.load()
    np.testing.assert_array_equal(sent(loaded), expected)
    np.testing.assert_array_equal(np.asarray(images.as_shown(path)), expected)


@pytest.mark.parametrize("name", list(DAMAGED))
def test_what_viewers_show_is_drawn(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    expected = np.asarray(decode_image(DAMAGED[name]))
    np.testing.assert_array_equal(np.asarray(images.as_shown(path)), expected)
    if name.endswith(".jpg"):  # Pillow itself does not open the others
        np.testing.assert_array_equal(sent(Image.open(path)), expected)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
def test_deep_grey_in_memory_is_not_white(mode: str) -> None:
    if mode == "I":
        image = Image.fromarray(GREY16.astype(np.int32))
    else:
        order = ">" if mode.endswith("B") else "<"
        image = Image.frombytes(mode, (7, 5), GREY16.astype(f"{order}u2").tobytes())
    assert image.mode == mode
    np.testing.assert_array_equal(sent(image)[..., 0], GREY16 >> 8)


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa", "RGBX", "YCbCr", "HSV"])
def test_other_modes_in_memory(mode: str) -> None:
    through = {"La": "LA", "PA": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    image = Image.fromarray(COLOURS).convert(through).convert(mode)
    shown = image.convert("LA") if mode == "La" else image.convert("RGBA" if image.has_transparency_data else "RGB")
    np.testing.assert_array_equal(sent(image), np.asarray(decode_image(encoded(shown, "PNG"))))


def test_a_picture_in_memory_leaves_its_metadata_behind() -> None:
    image = OPAQUE.copy()
    image.info |= {"icc_profile": bytes(3 << 20), "transparency": (1, 2, 3), "exif": b"nonsense", "dpi": ("a", None)}
    assert b"iCCP" not in calls.caption(image).inputs["IMAGE"][0]
    np.testing.assert_array_equal(sent(image)[..., :3], COLOURS[..., :3])
    assert image.info["dpi"] == ("a", None)  # the caller's own picture is as it was


def test_what_the_server_refuses_is_refused_by_name(tmp_path: Path) -> None:
    truncated = PHOTO[: len(PHOTO) * 2 // 3]
    with pytest.raises(InvalidRequest):
        decode_image(truncated)
    with pytest.raises(ClientError, match=r"the image cannot be sent: its JPEG data cannot be decoded \(.*truncated"):
        calls.caption(Image.open(io.BytesIO(truncated)))
    path = tmp_path / "truncated.jpg"
    path.write_bytes(truncated)
    with pytest.raises(ClientError, match=r"truncated\.jpg cannot be drawn"):
        images.as_shown(path)
    deep = encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF")
    with pytest.raises(InvalidRequest, match="32-bit samples"):
        decode_image(deep)
    for wide in (Image.open(io.BytesIO(deep)), Image.fromarray(np.full((2, 2), 70_000, np.int32))):
        with pytest.raises(ClientError, match="32-bit samples") as caught:
            calls.caption(wide)
        assert caught.value.status == "UNREADABLE"
    with pytest.raises(ClientError, match="cannot be sent: it has 10,000 × 6,401 pixels, more than 64,000,000 in all"):
        calls.caption(Image.new("1", (10_000, 6_401)))


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ClientError, match=r"picture\.png cannot be drawn: it is not a picture"):
        images.as_shown(path)
    with pytest.raises(ClientError, match="an EPS image is not accepted"):
        calls.caption(Image.open(path))
    assert not (tmp_path / "started").exists()
