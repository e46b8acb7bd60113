"""Videos as clients send them: which frames are looked at, and what is refused."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image

from mplug.errors import InvalidRequest
from mplug.inputs import video
from mplug.inputs.video import decode_video, sample_indices


def encoded(count: int, kind: str = "mp4", codec: str = "mpeg4", size: tuple[int, int] = (96, 64)) -> bytes:
    """Frame i is grey of level 8·i."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(count):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (8 * index,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def levels(pictures: list[Image.Image]) -> list[int]:
    return [round(np.asarray(picture).mean() / 8) for picture in pictures]


@pytest.mark.parametrize("count", [1, 3, 8, 9, 30, 250, 1001])
@pytest.mark.parametrize("wanted", [1, 4, 7, 8, 16])
def test_frames_are_sampled_as_published(count: int, wanted: int) -> None:
    indices = sample_indices(count, wanted)
    assert len(indices) == min(count, wanted)
    even = sample_indices(count, wanted, even=True)
    if count > wanted:
        assert indices == np.arange(0, count, count / wanted, dtype=int).tolist()[:wanted]
        assert even == np.arange(0, count, count / wanted).astype(int).tolist()[:wanted]
    for found in (indices, even):
        assert found == sorted(set(found)) and found[-1] < count


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        ("mp4", "mpeg4"),
        ("matroska", "mpeg4"),
        ("avi", "mpeg4"),
        ("mpegts", "mpeg2video"),
    ],
)
def test_the_frames_that_were_meant(kind: str, codec: str) -> None:
    pictures = decode_video(encoded(24, kind, codec), 6)
    assert levels(pictures) == pytest.approx([0, 4, 8, 12, 16, 20], abs=1)
    assert {picture.size for picture in pictures} == {(96, 64)}
    assert {picture.mode for picture in pictures} == {"RGB"}


def test_a_short_video_gives_all_it_has() -> None:
    assert len(decode_video(encoded(3), 8)) == 3


def test_a_video_that_is_cut_off_gives_what_came_before() -> None:
    data = encoded(24, "mpegts", "mpeg2video")
    assert decode_video(data[: len(data) // 2], 4)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "empty"),
        (b"nonsense" * 50, "cannot be decoded"),
        (encoded(5)[:200], "cannot be decoded"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost:1/a.ts\n", "cannot be decoded"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "cannot be decoded"),
    ],
    ids=["empty", "nonsense", "truncated", "playlist", "list of files"],
)
def test_what_is_no_video_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=f"VIDEO.*{complaint}") as refused:
        decode_video(data, 4)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("limit", "value", "complaint"),
    [
        ("MAX_VIDEO_BYTES", 100, "bytes"),
        ("MAX_VIDEO_SECONDS", 1, "longer"),
        ("MAX_VIDEO_FRAMES", 10, "longer"),
        ("MAX_VIDEO_SIDE", 80, "pixels"),
        ("MAX_VIDEO_PIXELS", 96 * 63, "pixels"),
    ],
)
def test_limits(monkeypatch: pytest.MonkeyPatch, limit: str, value: int, complaint: str) -> None:
    data = encoded(24)
    decode_video(data, 2)
    monkeypatch.setattr(video, limit, value)
    with pytest.raises(InvalidRequest, match=f"VIDEO.*{complaint}"):
        decode_video(data, 2)


def test_sound_alone_has_no_pictures() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InvalidRequest, match="VIDEO has no video stream"):
        decode_video(buffer.getvalue(), 4)
