"""Small files that ask for much work: each is read at once or refused by name, whatever decoders would make of it.

Found by fuzzing and by reading what Pillow and FFmpeg do byte by byte. Where a case is read, the test would not end in
reasonable time if the work grew with the square of the file again.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageFile

from mplug.errors import InvalidRequest
from mplug.inputs import mp4, video
from mplug.inputs.image_files import JpegStructure, seen_gif
from mplug.inputs.images import MAX_SLOW_BYTES, MAX_SLOW_VALUES, decode_image
from mplug.inputs.video import decode_video

ROOT = Path(__file__).parents[4]


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    rows, columns = np.mgrid[:48, :64]
    image = Image.fromarray(np.stack([rows * 5, columns * 3, rows + columns], -1).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data))


# JPEG


def test_a_long_run_of_fill_bytes_in_a_jpeg_is_skipped_at_once() -> None:
    whole = encoded("JPEG")
    np.testing.assert_array_equal(pixels(whole[:2] + b"\xff" * 2**20 + b"\x00" + whole[2:]), pixels(whole))
    np.testing.assert_array_equal(pixels(whole[:-2] + b"\xff" * 2**20 + b"\x00"), pixels(whole))


def test_a_jpeg_of_endless_segments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("was opened"))
    whole = encoded("JPEG")
    with pytest.raises(InvalidRequest, match="IMAGE is a JPEG of more than 4,096 segments"):
        decode_image(whole[:2] + b"\xff\xe5\x00\x02" * 5000 + whole[2:])


def test_what_is_not_seen_of_a_jpeg_does_not_reach_the_decoder() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = encoded("JPEG", exif=exif, comment=b"a comment", icc_profile=bytes(200_000), quality=90)
    another = b"\xff\xe1\x00\x10Exif\x00\x00another!"
    seen = JpegStructure.read(whole[:2] + whole[2:].replace(b"\xff\xdb", another + b"\xff\xdb", 1)).seen
    assert b"a comment" not in seen and b"ICC_PROFILE" not in seen and b"another!" not in seen
    assert seen.count(b"Exif") == 1 and len(seen) < 10_000
    np.testing.assert_array_equal(pixels(whole), pixels(encoded("JPEG", quality=90))[::-1, ::-1])


@pytest.mark.parametrize("options", [{"mode": "CMYK"}, {"mode": "L"}, {"progressive": True}, {"keep_rgb": True}])
def test_what_is_seen_of_a_jpeg_is_as_the_decoder_alone_sees_it(options: dict) -> None:
    data = encoded("JPEG", **options)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


# GIF


def gif_with(blocks: bytes) -> bytes:
    """A GIF with these bytes before its first frame."""
    data = encoded("GIF")
    start = 13 + (3 << ((data[10] & 7) + 1))
    return data[:start] + blocks + data[start:]


@pytest.mark.parametrize("blocks", [b"\x01" * 300_000, b"!\x01\x00" * 300_000, b"!\xfe" + b"\x01a" * 300_000 + b"\x00"])
def test_a_gif_of_endless_blocks_is_refused(blocks: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("was opened"))
    with pytest.raises(InvalidRequest, match="IMAGE is a GIF of more than 200,000 blocks"):
        decode_image(gif_with(blocks))


def test_comments_and_later_frames_of_a_gif_are_left_out() -> None:
    plain = encoded("GIF")
    assert seen_gif(gif_with(b"!\xfe\x05hello\x00\x00\x00"), "IMAGE") == plain
    buffer = io.BytesIO()
    frames = [Image.effect_noise((8, 8), 50) for _ in range(50)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert len(seen_gif(buffer.getvalue(), "IMAGE")) < len(buffer.getvalue()) / 10


def test_a_gif_without_its_last_byte_is_read_and_one_without_its_frame_refused() -> None:
    plain = encoded("GIF")
    np.testing.assert_array_equal(pixels(plain[:-1]), pixels(plain))
    for data in (plain[:13], plain[: len(plain) // 2]):
        with pytest.raises(InvalidRequest, match="the GIF data is truncated or damaged"):
            decode_image(data)


# What Pillow decodes in Python


def run_length_bmp(width: int, height: int, body: bytes) -> bytes:
    palette = bytes(range(256)) * 4
    offset = 54 + len(palette)
    header = struct.pack("<LHHL", offset + len(body), 0, 0, offset)
    return (
        b"BM"
        + header
        + struct.pack("<LllHHLLllLL", 40, width, height, 1, 8, 1, len(body), 1, 1, 256, 0)
        + palette
        + body
    )


@pytest.mark.parametrize(
    "data",
    [
        run_length_bmp(16_000, 4_000, b"\x01\x01\x00\x00" * 4_000),
        run_length_bmp(64, 64, b"\x00\x02\x00\x00" * (MAX_SLOW_BYTES // 4)),
        b"P3\n1000 1000\n255\n" + b"0 " * 3_000_000,
        b"P5\n2000 2000\n254\n" + bytes(4_000_000),
        b"P6\n1000 1000\n300\n" + bytes(6_000_000),
    ],
    ids=["rows", "skips", "text", "depth", "deep"],
)
def test_large_files_of_slow_kinds_are_refused(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(InvalidRequest, match=f"at most {MAX_SLOW_VALUES:,} in {MAX_SLOW_BYTES:,} are taken"):
        decode_image(data)


def test_small_files_of_slow_kinds_are_read() -> None:
    assert pixels(run_length_bmp(2, 1, b"\x02\x07\x00\x01")).shape == (1, 2, 3)
    assert pixels(b"P5\n2 1\n3\n\x00\x03").tolist() == [[[0] * 3, [255] * 3]]
    assert pixels(b"P2\n2 1\n255\n9 200\n").tolist() == [[[9] * 3, [200] * 3]]


def test_a_ppm_of_comments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("was opened"))
    with pytest.raises(InvalidRequest, match="IMAGE is a PPM with more than 1,000 comments"):
        decode_image(b"P3\n2 1\n255\n" + b"#\n" * 2_000 + b"0 0 0 9 9 9 ")


@pytest.mark.parametrize("first", [b"Pf\n# ", b"P0CMYK\n# ", b"PyRGBA\n# "])
def test_side_doors_of_the_ppm_reader_are_closed(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("was opened"))
    with pytest.raises(InvalidRequest, match="IMAGE is not an image in a known format"):
        decode_image(first + b"x" * 1_000_000 + b"\n2 1\n255\n")


def test_a_big_tiff_is_read() -> None:
    np.testing.assert_array_equal(pixels(encoded("TIFF", big_tiff=True)), pixels(encoded("PNG")))


def test_damaged_exif_does_not_fill_the_log() -> None:
    tags = b"".join(struct.pack("<HHLL", tag, 1, 60_000, 0) for tag in range(1, 5_000))
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", 4_999) + tags
    program = "import sys; from mplug.inputs.images import decode_image; decode_image(sys.stdin.buffer.read())"
    # A process of its own, since pytest has filters of its own for warnings.
    run = subprocess.run(
        [sys.executable, "-c", program], input=encoded("JPEG", exif=exif), capture_output=True, cwd=ROOT, check=True
    )
    assert run.stderr == b""


# MP4


def film(kind: str = "mp4", sound: str | None = None, **options: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind, options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(sound, rate=8_000, layout="mono") if sound else None
        for shade in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48), (shade * 50, 0, 0)))))
        container.mux(stream.encode(None))
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8_000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8_000
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return buffer.getvalue()


def patched(data: bytes, box: bytes, offset: int, *numbers: int) -> bytes:
    changed, place = bytearray(data), data.index(box) + offset
    changed[place : place + 4 * len(numbers)] = struct.pack(f">{len(numbers)}L", *numbers)
    return bytes(changed)


def declaring(samples: int) -> bytes:
    """An MP4 of a kilobyte that declares so many frames of one byte in one piece."""
    data = patched(patched(film(), b"stsz", 8, 1, samples), b"stts", 12, samples, 1)
    return patched(data, b"stsc", 8, 1, 1, samples, 1)


@pytest.mark.parametrize(
    "data",
    [
        declaring(80_000_000),
        patched(film(movflags="frag_keyframe+empty_moov"), b"trun", 4, 0, 80_000_000),
        patched(film(), b"elst", 8, 1_000_000),
        b"junk" + declaring(80_000_000),
        declaring(80_000_000).replace(b"moov", b"free", 1),  # a header in disguise, which FFmpeg finds
    ],
    ids=["stsz", "trun", "elst", "junk", "free"],
)
def test_an_mp4_that_declares_millions_of_frames_is_not_opened(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_open", lambda *_: pytest.fail("was opened"))
    with pytest.raises(InvalidRequest, match=r"VIDEO declares [0-9,]+ frames and sounds in up to [0-9,]+ pieces"):
        decode_video(data, 2)


def test_a_compressed_header_is_not_read() -> None:
    with pytest.raises(InvalidRequest, match="VIDEO has a compressed header"):
        decode_video(film().replace(b"udta", b"cmov"), 2)


def test_an_mp4_of_endless_boxes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp4, "MAX_BOXES", 100)
    assert len(decode_video(film() + b"\x00\x00\x00\x08skip" * 90, 2)) == 2
    with pytest.raises(InvalidRequest, match="VIDEO has more than 100 boxes"):
        decode_video(film() + b"\x00\x00\x00\x08skip" * 100, 2)


@pytest.mark.parametrize("samples", [8_000, 2**27])
def test_sounds_that_are_not_compressed_have_as_many_samples_as_they_like(samples: int) -> None:
    data = film("mov", "pcm_s16le")
    place = data.rindex(b"stsz")
    assert struct.unpack(">2L", data[place + 8 : place + 16]) == (2, 8_000)  # else the test would show nothing
    mp4.check_mp4(patched(data, data[place : place + 16], 12, samples), "VIDEO")
    # A picture's are counted even beside a sound's table of times.
    with pytest.raises(InvalidRequest, match="declares 80,000,000 frames"):
        mp4.check_mp4(patched(data, b"stsz", 8, 1, 80_000_000), "VIDEO")


def test_names_of_boxes_in_a_title_are_no_boxes() -> None:
    plain = film()
    titled = plain.replace(b"Lavf", b"trun")
    assert b"trun" in titled and len(titled) == len(plain)
    assert len(decode_video(titled, 2)) == 2


def test_decoders_that_are_not_listed_are_not_started() -> None:
    """FFmpeg decodes first frames while it looks for the streams, before the codec can be asked for."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv422p"
        container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48)))))
        container.mux(stream.encode(None))
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=False) as log, pytest.raises(InvalidRequest, match="encoded with ffv1"):
            decode_video(buffer.getvalue(), 1)
    finally:
        av.logging.set_level(before)
    assert any("ffv1" in message and "whitelist" in message for _, _, message in log)


def test_frames_larger_than_their_header_says_are_not_decoded_by_probing() -> None:
    picture = io.BytesIO()
    Image.new("L", (6_000, 6_000)).save(picture, "PNG")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        container.start_encoding()
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, stream.time_base
        container.mux(packet)
    with video._open(buffer.getvalue()) as container:
        assert container.streams.video[0].width != 6_000
    with pytest.raises(InvalidRequest, match="VIDEO cannot be decoded"):
        decode_video(buffer.getvalue(), 1)


# Damage of any kind


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """The file with bits flipped, bytes replaced, doubled or lost, and sometimes its end cut off."""
    changed = bytearray(data)
    if random.random() < 0.25:
        del changed[random.integers(1, len(changed)) :]
    for _ in range(random.integers(1, 8)):
        place = int(random.integers(min(len(changed), random.choice([64, len(changed)]))))
        kind = random.integers(4)
        if kind == 0:
            changed[place] ^= 1 << int(random.integers(8))
        elif kind == 1:
            numbers = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x00\x00\x40\x00")
            changed[place : place + 4] = numbers[random.integers(4)]
        elif kind == 2:
            changed[place:place] = changed[place : place + 100]
        else:
            del changed[place : place + int(random.integers(1, 50))]
        changed = changed or bytearray(b"x")
    return bytes(changed)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_image_is_an_image_or_is_refused(kind: str, seed: int) -> None:
    whole, random = encoded(kind), np.random.default_rng(seed)
    for _ in range(30):
        try:
            image = decode_image(damaged(whole, random))
        except InvalidRequest as refusal:
            assert str(refusal).startswith("IMAGE")
        else:
            assert image.mode == "RGB"


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi", "mpegts", "asf", "mov"])
def test_a_damaged_video_is_frames_or_is_refused(kind: str) -> None:
    whole, random = film(kind), np.random.default_rng(5)
    for _ in range(60):
        try:
            frames = decode_video(damaged(whole, random), 2)
        except InvalidRequest as refusal:
            assert str(refusal).startswith("VIDEO")
        else:
            assert 1 <= len(frames) <= 2 and all(frame.mode == "RGB" for frame in frames)
