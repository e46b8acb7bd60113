"""Files that travel as data URIs, which is how JSON carries them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mplug.errors import InvalidRequest
from mplug.inputs import files, video
from mplug.inputs import images as preprocess
from mplug.inputs.files import file_bytes
from mplug.inputs.images import decode_image
from mplug.inputs.video import decode_video


def encoded(format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(3).integers(0, 255, (7, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def uri(data: bytes, kind: str = "image/png") -> bytes:
    return b"data:" + kind.encode() + b";base64," + base64.b64encode(data)


@pytest.mark.parametrize("kind", ["image/png", "", "image/png;name=a.png", "anything"])
def test_a_data_uri_is_the_picture_in_it(kind: str) -> None:
    """The picture tells its format itself; what the URI says of it is not needed."""
    picture = encoded()
    assert np.array_equal(decode_image(uri(picture, kind)), decode_image(picture))


@pytest.mark.parametrize("length", range(1, 6))
def test_all_paddings(length: int) -> None:
    assert file_bytes(uri(b"x" * length), 5, "IMAGE") == b"x" * length


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"data:image/png,abc", "without base64"),
        (b"data:image/png;base64", "is empty|not an image"),
        (b"data:", "without base64"),
        (b"data:image/png;base64,", "is empty"),
        (b"data:image/png;base64,@@@@", "damaged"),
        (b"data:image/png;base64,AAA", "damaged"),
        (b"data:image/png;base64,AAAA\nAAAA", "damaged"),
        (uri(b"nonsense" * 9), "not an image"),
        (uri(uri(encoded())), "not an image"),
    ],
)
def test_what_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as refusal:
        decode_image(data, name="IMAGE[1]")
    assert str(refusal.value).startswith("IMAGE[1]") and "\n" not in str(refusal.value)


def test_sizes_are_those_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = encoded()
    monkeypatch.setattr(preprocess, "MAX_IMAGE_BYTES", len(picture))
    decode_image(uri(picture))
    monkeypatch.setattr(preprocess, "MAX_IMAGE_BYTES", len(picture) - 1)
    for data in (picture, uri(picture)):
        with pytest.raises(InvalidRequest, match=rf"IMAGE has {len(picture)} bytes"):
            decode_image(data)


def test_a_text_too_long_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.base64, "b64decode", lambda *_, **__: pytest.fail("was decoded"))
    with pytest.raises(InvalidRequest, match="at most 9 are taken"):
        file_bytes(uri(b"x" * 12), 9, "VIDEO")


def test_videos_too(monkeypatch: pytest.MonkeyPatch) -> None:
    animation = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 120, 240)]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:], duration=100)
    data = animation.getvalue()
    pairs = zip(decode_video(uri(data, "image/gif"), 3), decode_video(data, 3), strict=True)
    assert all(np.array_equal(mine, theirs) for mine, theirs in pairs)
    monkeypatch.setattr(video, "MAX_VIDEO_BYTES", len(data) - 1)
    with pytest.raises(InvalidRequest, match="VIDEO has"):
        decode_video(uri(data, "video/mp4"), 3)
