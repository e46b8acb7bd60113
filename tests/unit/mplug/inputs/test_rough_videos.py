"""Videos as people have them, and as attackers make them."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from mplug.errors import InvalidRequest
from mplug.inputs import video
from mplug.inputs.images import UPRIGHT
from mplug.inputs.video import decode_video

SIZE = (64, 48)
QUARTERS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]  # top left, top right, bottom left, bottom right


def quarters() -> Image.Image:
    image = Image.new("RGB", SIZE)
    width, height = SIZE[0] // 2, SIZE[1] // 2
    for index, colour in enumerate(QUARTERS):
        image.paste(
            colour, (index % 2 * width, index // 2 * height, (index % 2 + 1) * width, (index // 2 + 1) * height)
        )
    return image


def film(container, codec: str = "mpeg4", frames: int = 4):
    stream = container.add_stream(codec, rate=10)
    stream.width, stream.height = SIZE
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    if codec == "mpeg4":
        stream.codec_context.bit_rate = 2_000_000

    def write() -> None:
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(quarters())))
        container.mux(stream.encode(None))

    return stream, write


def encoded(codec: str = "mpeg4", kind: str = "mp4") -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        film(container, codec)[1]()
    return buffer.getvalue()


def corners(image: Image.Image) -> list[str]:
    """Names of the colours in the four corners, so that lossy coding does not matter."""
    width, height = image.size
    names = []
    for x, y in ((8, 8), (width - 8, 8), (8, height - 8), (width - 8, height - 8)):
        pixel = np.array(image.getpixel((x, y)))
        names.append(str(int(np.argmin([np.abs(pixel - colour).sum() for colour in QUARTERS]))))
    return names


#: EXIF orientation → a, b, c, d of the display matrix of a track header, as phones and editors write it.
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


@pytest.mark.parametrize("orientation", MATRICES)
def test_a_film_is_turned_and_mirrored_as_players_show_it(orientation: int) -> None:
    data = bytearray(encoded())
    a, b, c, d = (value << 16 for value in MATRICES[orientation])
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(identity, data.index(b"tkhd"))
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    stored = quarters()
    expected = stored if orientation == 1 else stored.transpose(UPRIGHT[orientation])
    (found, *_) = decode_video(bytes(data), 1)
    assert found.size == expected.size
    assert corners(found) == corners(expected)


def with_cover(kind: str, *, sound: bool, cover_first: bool) -> bytes:
    """A film or a sound with a cover picture attached, black where the film has its quarters."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        writers = []

        def add_cover() -> None:
            stream = container.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
            stream.disposition = Disposition.attached_pic

            def write() -> None:
                container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32)))))
                container.mux(stream.encode(None))

            writers.append(write)

        def add_film() -> None:
            writers.append(film(container)[1])

        def add_sound() -> None:
            stream = container.add_stream("aac", rate=8000, layout="mono")

            def write() -> None:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate = 8000
                container.mux(stream.encode(frame))
                container.mux(stream.encode(None))

            writers.append(write)

        parts = [add_cover, add_sound if sound else add_film]
        for part in parts if cover_first else reversed(parts):
            part()
        container.start_encoding()
        for write in writers:
            write()
    return buffer.getvalue()


@pytest.mark.parametrize("cover_first", [True, False])
def test_a_cover_picture_is_not_the_film(cover_first: bool) -> None:
    data = with_cover("mp4", sound=False, cover_first=cover_first)
    with av.open(io.BytesIO(data)) as container:  # else the test would show nothing
        assert sum(bool(stream.disposition & Disposition.attached_pic) for stream in container.streams.video) == 1
    found = decode_video(data, 2)
    assert [image.size for image in found] == [SIZE] * 2
    assert corners(found[0]) == ["0", "1", "2", "3"]


def test_a_sound_with_a_cover_is_no_film() -> None:
    with pytest.raises(InvalidRequest, match="VIDEO has no video stream: only sound, text or a cover picture"):
        decode_video(with_cover("mp4", sound=True, cover_first=False), 2)


@pytest.mark.parametrize(("codec", "kind"), [("ffv1", "matroska"), ("huffyuv", "avi")])
def test_codecs_that_are_not_listed_are_refused(codec: str, kind: str) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv422p"
        container.mux(stream.encode(av.VideoFrame.from_image(quarters())))
        container.mux(stream.encode(None))
    with pytest.raises(InvalidRequest, match=f"VIDEO is encoded with {codec}, which is not read"):
        decode_video(buffer.getvalue(), 1)


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_listed_codecs_are_read(codec: str) -> None:
    assert corners(decode_video(encoded(codec, "matroska"), 1)[0]) == ["0", "1", "2", "3"]


def test_work_is_bounded_before_it_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_DECODED_PIXELS", 2 * SIZE[0] * SIZE[1])
    monkeypatch.setattr(video, "_pictures", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(InvalidRequest, match=r"VIDEO has 3 frames of 3,072 pixels to decode, at most 2 of this size"):
        decode_video(encoded(), 2)


def test_decoding_stops_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_DECODING_SECONDS", -1)
    with pytest.raises(InvalidRequest, match="takes more than -1 s to decode"):
        decode_video(encoded(), 2)


def test_a_decoder_short_of_memory_is_the_files_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg says so of sizes in hostile files."""

    def short(*_):
        raise av.error.MemoryError(12, "Cannot allocate memory")

    monkeypatch.setattr(video, "_pictures", short)
    with pytest.raises(InvalidRequest, match="VIDEO cannot be decoded"):
        decode_video(encoded(), 1)
