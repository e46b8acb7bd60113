"""An encoded video → a few of its frames. Everything from outside is checked here, at the door.

Limits hold before pixels are decoded, as far as the file says the truth, and while they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import av
from PIL import Image

from mplug.errors import InvalidRequest
from mplug.inputs.images import file_bytes

MAX_VIDEO_BYTES = 64 * 2**20  # encoded, 64 MiB
MAX_VIDEO_SECONDS = 300
MAX_VIDEO_FRAMES = 18_000  # 300 s of 60 frames a second
MAX_VIDEO_SIDE = 4096  # pixels
MAX_VIDEO_PIXELS = 4096 * 2304  # of one frame
#: Containers that are opened, by FFmpeg's names. A fixed list: playlists (HLS, DASH, concat) are containers to
#: FFmpeg, too, and would have it open other files and addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
#: The bytes in memory need no protocol, and nothing else is to be opened.
PROTOCOLS = "pipe"


def sample_indices(count: int, wanted: int, *, even: bool = False) -> list[int]:
    """Return which of `count` frames are looked at: `wanted` of them, or all where there are no more.

    As published, their distance is a whole number: `np.arange(0, n, n / frames, dtype=int)` of the authors' loaders
    cuts it, so 8 of 30 frames are 0, 3, 6 … 21 and the last eight are never seen. `even`: spread over all frames.
    """
    if count <= wanted:
        return list(range(count))
    return [index * count // wanted if even else index * (count // wanted) for index in range(wanted)]


def decode_video(data: bytes, frames: int, *, name: str = "VIDEO", even: bool = False) -> list[Image.Image]:
    """Return at most `frames` upright RGB frames of an encoded video, those of `sample_indices`.

    `name` is the input's name for messages. Raises InvalidRequest when it is empty, not a video, damaged, or
    beyond a limit of this module.
    """
    data = file_bytes(data, MAX_VIDEO_BYTES, name)
    if not data:
        raise InvalidRequest(f"{name} is empty: send the bytes of an encoded video (MP4, WebM, AVI …)")
    try:
        pictures = _pictures(data, set(sample_indices(_count(data, name), frames, even=even)), name)
        if not pictures:
            raise InvalidRequest(f"{name} holds no frame that can be decoded")
        return pictures
    except (InvalidRequest, MemoryError):
        raise
    except Exception as error:  # demuxers and decoders raise about anything on hostile bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidRequest(f"{name} cannot be decoded: damaged, or not a video of a known kind ({reason})") from error


def _open(data: bytes) -> av.container.InputContainer:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": PROTOCOLS}
    return av.open(io.BytesIO(data), container_options=options, metadata_errors="replace")


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    if not container.streams.video:
        raise InvalidRequest(f"{name} has no pictures in it: only sound or text")
    return container.streams.video[0]


def _count(data: bytes, name: str) -> int:
    """Frames of a video, counted without decoding: what headers say of it is often missing or wrong."""
    with _open(data) as container:
        stream = _video_stream(container, name)
        _check_size(stream.codec_context.width, stream.codec_context.height, name)
        first, last, count = None, None, 0
        for packet in container.demux(stream):
            if not packet.size:
                continue
            count += 1
            if packet.pts is not None:
                first = packet.pts if first is None else min(first, packet.pts)
                last = packet.pts if last is None else max(last, packet.pts)
            seconds = 0.0 if first is None else float((last - first) * packet.time_base)
            if count > MAX_VIDEO_FRAMES or seconds > MAX_VIDEO_SECONDS:
                raise InvalidRequest(
                    f"{name} is longer than {MAX_VIDEO_SECONDS} s or {MAX_VIDEO_FRAMES:,} frames: send a part of it"
                )
    if not count:
        raise InvalidRequest(f"{name} holds no frames")
    return count


def _pictures(data: bytes, wanted: set[int], name: str) -> list[Image.Image]:
    with _open(data) as container:
        stream = _video_stream(container, name)
        stream.codec_context.options = {"max_pixels": str(MAX_VIDEO_PIXELS)}
        pictures: list[Image.Image] = []
        last = None
        for index, frame in enumerate(_frames(container, stream)):
            _check_size(frame.width, frame.height, name)
            last = frame
            if index in wanted:
                pictures.append(_upright(frame))
                if len(pictures) == len(wanted):
                    return pictures
        if last is not None and not pictures:
            pictures.append(_upright(last))
        return pictures


def _frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decoded frames; a file that is cut off gives those before the cut."""
    decoded = 0
    try:
        for frame in container.decode(stream):
            decoded += 1
            yield frame
    except av.FFmpegError:
        if not decoded:
            raise


def _upright(frame: av.VideoFrame) -> Image.Image:
    """RGB, turned as players show it: phones store how they were held."""
    turns = round(frame.rotation / 90) % 4  # quarter turns, counterclockwise
    picture = frame.to_image()
    methods = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    method = methods[turns]
    return picture if method is None else picture.transpose(method)


def _check_size(width: int, height: int, name: str) -> None:
    if max(width, height) > MAX_VIDEO_SIDE or width * height > MAX_VIDEO_PIXELS:
        raise InvalidRequest(
            f"{name} is {width:,} × {height:,} pixels, at most {MAX_VIDEO_PIXELS:,} in all and "
            f"{MAX_VIDEO_SIDE:,} a side are taken: send a smaller video"
        )
