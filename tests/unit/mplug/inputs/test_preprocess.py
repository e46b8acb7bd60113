"""Images as clients send them: what decodes, what is refused, and the golden pixel values."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mplug.errors import InvalidRequest
from mplug.inputs import images as preprocess
from mplug.inputs.images import decode_image
from mplug.inputs.pixels import letterbox_pixel_values, pixel_values

GOLDEN = Path(__file__).parents[3] / "parity" / "data"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """A picture of four flat quarters: survives lossy encoders, and no two of its sides are alike."""
    colours = np.random.default_rng(seed).integers(30, 220, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def noise(width: int = 80, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference in levels (0…255)."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


def png_declaring(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes that declares any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


# ------------------------------------------------------------------------------------------ what comes in


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_decodes(kind: str) -> None:
    decoded = decode_image(encode(picture(), kind))
    assert decoded.mode == "RGB"
    assert difference(decoded, picture()) < 4  # levels; only JPEG, WebP and GIF lose any


def test_lossless_formats_are_exact() -> None:
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert difference(decode_image(encode(noise(), kind)), noise()) == 0


def test_one_pixel_is_an_image() -> None:
    for kind in FORMATS:
        decoded = decode_image(encode(Image.new("RGB", (1, 1), "red"), kind))
        assert decoded.size == (1, 1)
    assert pixel_values(decoded, 32).shape == (3, 32, 32)
    assert letterbox_pixel_values(decoded, 32)[0].shape == (3, 32, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    # How a camera held that way stores the picture: the inverse of what brings it upright.
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = picture()
    turned = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(decode_image(encode(turned, kind, exif=exif)), upright) < 4


def test_broken_exif_does_not_spoil_a_picture() -> None:
    data = encode(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert difference(decode_image(data), picture()) < 4


def test_transparency_is_laid_on_white() -> None:
    layers = noise().convert("RGBA")
    layers.putalpha(Image.new("L", layers.size, 0))
    layers.paste((10, 20, 30, 255), (0, 0, 40, 60))
    for kind in ("PNG", "TIFF"):
        decoded = decode_image(encode(layers, kind))
        assert decoded.getpixel((0, 0)) == (10, 20, 30)
        assert decoded.getpixel((79, 59)) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(decode_image(encode(half, "PNG")).getpixel((0, 0))[0] - 127) <= 1


def test_grey_with_alpha_and_transparent_palette() -> None:
    grey = Image.new("LA", (4, 4), (40, 255))
    grey.putpixel((3, 3), (40, 0))
    decoded = decode_image(encode(grey, "PNG"))
    assert decoded.getpixel((0, 0)) == (40, 40, 40)
    assert decoded.getpixel((3, 3)) == (255, 255, 255)

    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 10, 10, 10, 200, 10])
    palette.putpixel((3, 3), 1)
    for kind in ("PNG", "GIF"):
        decoded = decode_image(encode(palette, kind, transparency=1))
        assert decoded.getpixel((0, 0)) == (200, 10, 10)
        assert decoded.getpixel((3, 3)) == (255, 255, 255)
    assert decode_image(encode(palette, "PNG")).getpixel((3, 3)) == (10, 200, 10)


def test_one_bit_and_grey() -> None:
    assert decode_image(encode(Image.new("1", (4, 4), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encode(Image.new("L", (4, 4), 77), "JPEG")).getpixel((0, 0)) == (77, 77, 77)


def test_cmyk_jpeg_looks_like_its_rgb() -> None:
    data = encode(picture().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data  # so its samples are stored inverted
    assert difference(decode_image(data), picture()) < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(ramp), kind)))
    assert (decoded == np.arange(256).reshape(16, 16)[:, :, None]).all()


def test_sixteen_bit_transparent_level_is_white() -> None:
    grey = Image.fromarray(np.array([[0, 30_000]], dtype=np.uint16))
    decoded = decode_image(encode(grey, "PNG", transparency=30_000))
    assert [decoded.getpixel((x, 0))[0] for x in range(2)] == [0, 255]


def test_samples_without_a_range_are_refused() -> None:
    for samples in (np.full((2, 2), 0.5, np.float32), np.full((2, 2), 2**30, np.int32)):
        with pytest.raises(InvalidRequest, match="IMAGE has 32-bit samples"):
            decode_image(encode(Image.fromarray(samples), "TIFF"))


def test_first_frame_of_an_animation() -> None:
    frames = [picture(seed=seed) for seed in (0, 5)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert difference(decode_image(data), frames[0]) < 4


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "data, complaint",
    [
        (b"", "FRAME is empty"),
        (b"hello, I am no image", "FRAME is not an image in a known format"),
        (b"\0" * 1000, "FRAME is not an image in a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "FRAME is not an image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "FRAME is not an image in a known format"),
        (b"\xff\xd8\xff\xe0 and then nonsense", "FRAME cannot be decoded, the JPEG data"),
    ],
)
def test_not_an_image(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as caught:
        decode_image(data, name="FRAME")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("kept", [0.03, 0.3, 0.6, 0.9])
def test_truncated(kind: str, kept: float) -> None:
    data = encode(noise(), kind)
    with pytest.raises(InvalidRequest, match=f"IMAGE cannot be decoded, the {kind} data is truncated"):
        decode_image(data[: int(len(data) * kept)])


def test_truncated_progressive_jpeg() -> None:
    data = encode(noise(), "JPEG", progressive=True)
    with pytest.raises(InvalidRequest, match="truncated"):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("size", [(20_000, 20_000), (9_000, 9_000), (11_000, 10_000), (16_385, 1)])
def test_declared_size_is_refused_before_decoding(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded an image that is too large")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with pytest.raises(InvalidRequest, match=r"IMAGE .*pixels.* are taken: send a smaller image"):
        decode_image(png_declaring(*size))


def test_an_image_at_the_limits_is_taken() -> None:
    side = preprocess.MAX_IMAGE_SIDE
    assert decode_image(encode(Image.new("L", (side, 1)), "PNG")).size == (side, 1)


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(picture(), "PNG")
    monkeypatch.setattr(preprocess, "MAX_IMAGE_BYTES", len(data))
    decode_image(data)
    with pytest.raises(InvalidRequest, match=f"IMAGE has {len(data) + 1} bytes, at most {len(data)}"):
        decode_image(data + b"\0")


# ------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("case", ["caption", "vqa", "retrieval", "grounding", "video", "resize"])
def test_golden_pixel_values(case: str) -> None:
    golden = np.load(GOLDEN / case / "tensors.npz")["pixel_values"]
    stem = "frame" if case == "video" else "image"
    assert len(golden) > 0
    for index, expected in enumerate(golden):
        image = decode_image((GOLDEN / case / f"{stem}{index}.png").read_bytes())
        if case == "grounding":
            values, _ = letterbox_pixel_values(image, expected.shape[-1])
        else:
            values = pixel_values(image, expected.shape[-1])
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected)


def test_grounding_may_normalise_with_imagenets_statistics() -> None:
    values, _ = letterbox_pixel_values(Image.new("RGB", (8, 8), (255, 0, 51)), 8, "imagenet")
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(values[:, 4, 4], expected, rtol=1e-6)


def test_resize_is_pillows_bicubic_without_aspect_ratio() -> None:
    image = noise(101, 37)
    levels = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC), np.float64) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = ((levels - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(pixel_values(image, 48), expected, atol=1e-6)


@pytest.mark.parametrize(
    "size, left, top, resized",
    [
        ((80, 60), 0, 7, (56, 42)),
        ((60, 80), 7, 0, (42, 56)),
        ((64, 51), 0, 5, (56, 45)),  # 11 pixels are free: 5 above, 6 below
        ((20, 10), 0, 14, (56, 28)),  # enlarged
        ((5000, 3), 0, 27, (56, 1)),  # never thinner than a pixel
    ],
)
def test_letterbox(size: tuple[int, int], left: int, top: int, resized: tuple[int, int]) -> None:
    values, letterbox = letterbox_pixel_values(Image.new("RGB", size, "white"), 56)
    assert (letterbox.left, letterbox.top, letterbox.resized) == (left, top, resized)
    inside = np.zeros((56, 56), dtype=bool)
    inside[top : top + resized[1], left : left + resized[0]] = True
    assert (values[:, ~inside] == 0).all()
    assert (values[:, inside] > 1.9).all()  # normalised white


def test_box_returns_to_the_image_as_sent() -> None:
    _, letterbox = letterbox_pixel_values(picture(400, 300), 200)  # on the canvas: 200 × 150 from (0, 25)
    # x0 = 40, y0 = 60, x1 = 240, y1 = 260 in the image is 20…120 and 55…155 on the canvas.
    box = letterbox.to_image((70 / 200, 105 / 200, 100 / 200, 100 / 200))
    assert box == pytest.approx((40, 60, 240, 260))


def test_box_is_clipped_to_the_image() -> None:
    _, letterbox = letterbox_pixel_values(picture(400, 300), 200)
    assert letterbox.to_image(np.array([0.5, 0.5, 1, 1], np.float32)) == pytest.approx((0, 0, 400, 300))
    assert letterbox.to_image((1.0, 1.0, 0.5, 0.5)) == pytest.approx((300, 250, 400, 300))


def test_every_box_stays_in_order_and_inside() -> None:
    _, letterbox = letterbox_pixel_values(picture(321, 123), 56)
    for index in range(57**2):
        box = (index % 57 / 56, index // 57 / 56, 0.25, 0.25)
        x0, y0, x1, y1 = letterbox.to_image(box)
        assert 0 <= x0 <= x1 <= 321 and 0 <= y0 <= y1 <= 123
