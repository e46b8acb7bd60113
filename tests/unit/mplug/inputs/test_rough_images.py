"""Pictures as people have them, and as attackers make them: what viewers show is read, what they refuse is refused."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from mplug.errors import InvalidRequest, Unavailable
from mplug.inputs import image_files, images
from mplug.inputs.image_files import MAX_JPEG_SCANS, JpegStructure
from mplug.inputs.images import PixelBudget, decode_image

SIZE = (96, 64)


def picture() -> Image.Image:
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    return Image.fromarray(np.stack([rows * 3, columns * 2, (rows + columns) % 256], -1).astype(np.uint8))


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data))


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(*chunks: bytes) -> bytes:
    """A PNG with these chunks behind its header."""
    data = encoded("PNG")
    header = 8 + 25  # the signature and IHDR
    return data[:header] + b"".join(chunks) + data[header:]


# JPEG


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_is_read(progressive: bool, missing: int) -> None:
    whole = encoded("JPEG", progressive=progressive)
    np.testing.assert_array_equal(pixels(whole[:-missing]), pixels(whole))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.67, 0.9, 0.98])
def test_a_jpeg_that_lost_a_part_is_refused_by_name(progressive: bool, share: float) -> None:
    whole = encoded("JPEG", progressive=progressive, quality=95)
    with pytest.raises(InvalidRequest, match="IMAGE cannot be decoded, the JPEG data is truncated or damaged"):
        decode_image(whole[: int(len(whole) * share)])


def test_what_is_appended_to_a_jpeg_does_not_count() -> None:
    """Phones append a film, whose bytes look like markers here and there."""
    whole = encoded("JPEG")
    film = b"\xff\xda\x00\x04\x00\x00" * 1000
    np.testing.assert_array_equal(pixels(whole + film), pixels(whole))


def test_scans_are_counted_as_written() -> None:
    baseline, progressive = (JpegStructure.read(encoded("JPEG", progressive=kind)) for kind in (False, True))
    assert (baseline.scans, baseline.ended) == (1, True)
    assert progressive.ended and 5 <= progressive.scans <= 20
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 200  # markers inside a segment are none
    assert JpegStructure.read(encoded("JPEG", exif=exif)).scans == 1


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded("JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    bomb = whole[:start] + whole[start:-2] * (MAX_JPEG_SCANS + 1) + whole[-2:]
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(InvalidRequest, match="IMAGE is a JPEG of more than 100 scans"):
        decode_image(bomb)
    monkeypatch.setattr(image_files, "MAX_JPEG_WORK", SIZE[0] * SIZE[1] * 3)
    with pytest.raises(InvalidRequest, match=r"scans over 6,144 pixels, more than 18,432 in all"):
        decode_image(whole)


# PNG


@pytest.mark.parametrize("kind", [b"pHYs", b"iCCP", b"tEXt", b"gAMA", b"tIME", b"eXIf"])
def test_a_png_with_damage_in_what_is_not_seen_is_read(kind: bytes) -> None:
    damaged = with_chunk(chunk(kind, b"\x00\x00\x0b\x13\x00\x00\x0b\x13\x01", checksum=12345))
    if kind == b"eXIf":  # a checksum that is wrong, on something that is looked at: the picture counts
        damaged = with_chunk(chunk(kind, b"MM\x00*garbage"))
    np.testing.assert_array_equal(pixels(damaged), np.asarray(picture()))


def test_a_png_with_a_large_profile_is_read() -> None:
    profile = np.random.default_rng(0).integers(0, 256, 2 << 20, np.uint8).tobytes()
    large = with_chunk(chunk(b"iCCP", b"profile\x00\x00" + zlib.compress(profile)))
    np.testing.assert_array_equal(pixels(large), np.asarray(picture()))


def test_a_png_with_damaged_pixels_is_refused() -> None:
    data = bytearray(encoded("PNG"))
    data[data.index(b"IDAT") + 30] ^= 0xFF
    with pytest.raises(InvalidRequest, match="the PNG data is truncated or damaged"):
        decode_image(bytes(data))


def test_a_png_of_endless_chunks_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="PNG of more than 65,536 chunks"):
        decode_image(with_chunk(*[chunk(b"tEXt", b"")] * 70_000))


def test_transparency_and_orientation_of_a_png_are_kept() -> None:
    layers = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    layers.putpixel((1, 0), (0, 0, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    layers.save(buffer, "PNG", exif=exif)
    assert pixels(buffer.getvalue()).tolist() == [[[255, 0, 0]], [[255, 255, 255]]]


# Others


def test_a_ppm_with_an_endless_comment_is_refused() -> None:
    header = b"P6\n# " + b"x" * (15 << 20) + b"\n2 1\n255\n" + bytes(6)
    with pytest.raises(InvalidRequest, match=r"PPM with a header of more than 4,096 bytes"):
        decode_image(header)


def test_a_ppm_with_a_comment_is_read() -> None:
    assert pixels(b"P6\n# by hand\n2 1 # two of them\n255\n" + bytes(range(6))).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert pixels(b"P1\n2 1\n0 1\n").tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_exif_of_a_wrong_type_does_not_spoil_a_picture(kind: str) -> None:
    """Some phones write a text where a fraction is meant (XResolution, 0x011A)."""
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x010F] = "a phone"
    data = encoded(kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    # Pillow writes no wrong types, so an ASCII field gets the tag of a fraction.
    for order in (b"\x01\x0f\x00\x02", b"\x0f\x01\x02\x00"):
        data = data.replace(order, order.replace(b"\x0f", b"\x1a") if order[0] == 1 else b"\x1a\x01\x02\x00")
    if kind == "PNG":  # the checksum of the chunk that was changed
        start = data.index(b"eXIf")
        length = int.from_bytes(data[start - 4 : start], "big")
        body = data[start : start + 4 + length]
        data = data[: start + 4 + length] + struct.pack(">I", zlib.crc32(body)) + data[start + 8 + length :]
    expected = np.asarray(picture())[::-1, ::-1].astype(int)
    assert np.abs(pixels(data) - expected).max() <= (40 if kind == "JPEG" else 0)  # JPEG is lossy


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    samples = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for image in (Image.fromarray(samples), Image.fromarray(samples.astype(np.int32))):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        np.testing.assert_array_equal(pixels(buffer.getvalue())[..., 0], samples >> 8)


def test_pixels_at_once_are_bounded() -> None:
    budget, inside, most = PixelBudget(100), [], []
    gate = threading.Event()
    lock = threading.Lock()

    def use(pixels: int) -> None:
        with budget.take(pixels):
            with lock:
                inside.append(min(pixels, 100))
                most.append(sum(inside))
            gate.wait(20)
            with lock:
                inside.remove(min(pixels, 100))

    threads = [threading.Thread(target=use, args=(pixels,)) for pixels in (60, 60, 30, 1000, 10)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(20)
    assert len(most) == 5 and max(most) <= 100


def test_a_share_is_given_back_after_a_failure() -> None:
    budget = PixelBudget(10)
    for _ in range(3):
        with pytest.raises(ValueError), budget.take(10):
            raise ValueError
    with budget.take(10):
        pass


def test_short_memory_is_no_fault_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", short)
    with pytest.raises(Unavailable, match="IMAGE: not enough memory"):
        decode_image(encoded("PNG"))
