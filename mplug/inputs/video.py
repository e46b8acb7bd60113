"""An encoded video → a few of its frames. Everything from outside is checked here, at the door.

Limits hold before pixels are decoded, as far as the file says the truth, and while they are.
"""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator

import av
from av.stream import Disposition
from PIL import Image

from mplug.errors import InvalidRequest
from mplug.inputs.files import file_bytes
from mplug.inputs.images import UPRIGHT
from mplug.inputs.mp4 import check_mp4

MAX_VIDEO_BYTES = 64 * 2**20  # encoded, 64 MiB
MAX_VIDEO_SECONDS = 300
MAX_VIDEO_FRAMES = 18_000  # 300 s of 60 frames a second
MAX_VIDEO_SIDE = 4096  # pixels
MAX_VIDEO_PIXELS = 4096 * 2304  # of one frame
MAX_PROBED_PIXELS = 7680 * 4320  # of a frame that FFmpeg decodes to find out how large frames are
#: Frames × pixels up to the last frame that is looked at: all of them have to be decoded. 4 gigapixels are 64 s of
#: 1080p or 145 s of 720p at 30 frames a second.
MAX_DECODED_PIXELS = 4 * 10**9
MAX_DECODING_SECONDS = 30  # of the clock, for content that is slower to decode than its size says
#: Codecs that are decoded, by FFmpeg's names: what cameras, phones, browsers and editors write. FFmpeg has some 300
#: decoders, and its odd ones are where its vulnerabilities are.
CODECS = (
    *("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "theora", "h263"),
    *("msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1", "flv1", "prores", "dnxhd", "dvvideo", "gif", "png", "rawvideo"),
)
#: The same for what FFmpeg decodes while it looks for the streams: decoders, where those have other names.
_DECODERS = ",".join((*CODECS, "libdav1d", "libvpx", "libvpx-vp9", "msmpeg4", "flv"))
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
    check_mp4(data, name)
    try:
        count, pixels = _count(data, name)
        wanted = set(sample_indices(count, frames, even=even))
        _check_work(max(wanted) + 1, pixels, name)
        pictures = _pictures(data, wanted, name)
        if not pictures:
            raise InvalidRequest(f"{name} holds no frame that can be decoded")
        return pictures
    except InvalidRequest:
        raise
    except Exception as error:  # demuxers and decoders raise about anything on hostile bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidRequest(f"{name} cannot be decoded: damaged, or not a video of a known kind ({reason})") from error


def _open(data: bytes) -> av.container.InputContainer:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": PROTOCOLS, "codec_whitelist": _DECODERS}
    # Those of decoders hold for the frames that FFmpeg decodes while it looks for the streams, too.
    decoding = {"max_pixels": str(MAX_PROBED_PIXELS)}
    return av.open(io.BytesIO(data), options=decoding, container_options=options, metadata_errors="replace")


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The stream that players show: the best one, as FFmpeg ranks them, that is not an attached cover picture."""
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not films:
        raise InvalidRequest(f"{name} has no video stream: only sound, text or a cover picture")
    best = container.streams.best("video")
    stream = best if best in films else films[0]
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown"
    if codec not in CODECS:
        raise InvalidRequest(f"{name} is encoded with {codec}, which is not read: send H.264, VP9 or AV1")
    return stream


def _count(data: bytes, name: str) -> tuple[int, int]:
    """Frames of a video, counted without decoding, and pixels of each: what headers say is often missing or wrong."""
    with _open(data) as container:
        stream = _video_stream(container, name)
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_size(width, height, name)
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
    return count, width * height


def _check_work(frames: int, pixels: int, name: str) -> None:
    if frames * pixels > MAX_DECODED_PIXELS:
        raise InvalidRequest(
            f"{name} has {frames:,} frames of {pixels:,} pixels to decode, at most {MAX_DECODED_PIXELS // pixels:,} of "
            "this size are taken: send a shorter or smaller video"
        )


def _pictures(data: bytes, wanted: set[int], name: str) -> list[Image.Image]:
    with _open(data) as container:
        stream = _video_stream(container, name)
        stream.codec_context.options = {"max_pixels": str(MAX_VIDEO_PIXELS)}
        pictures: list[Image.Image] = []
        last = None
        deadline = time.monotonic() + MAX_DECODING_SECONDS
        for index, frame in enumerate(_frames(container, stream)):
            _check_size(frame.width, frame.height, name)
            if time.monotonic() > deadline:
                raise InvalidRequest(
                    f"{name} takes more than {MAX_DECODING_SECONDS} s to decode: send a shorter or smaller video"
                )
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
    """RGB, turned and mirrored as players show it: phones store how they were held."""
    method = UPRIGHT.get(_orientation(frame))
    picture = frame.to_image()
    return picture if method is None else picture.transpose(method)


def _orientation(frame: av.VideoFrame) -> int:
    """The EXIF orientation that a frame's display matrix stands for; 1 for none, or one that is no quarter turn.

    The matrix takes a stored point (x, y) to (a x + c y, b x + d y) on the screen (ISO/IEC 14496-12, section 8.2.2).
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])

    def sign(value: int) -> int:
        return (value > 0) - (value < 0) if abs(value) > 1 << 15 else 0  # 16.16 fixed point: half of one

    return _ORIENTATIONS.get((sign(a), sign(b), sign(c), sign(d)), 1)


#: Signs of a, b, c, d → EXIF orientation.
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


def _check_size(width: int, height: int, name: str) -> None:
    if max(width, height) > MAX_VIDEO_SIDE or width * height > MAX_VIDEO_PIXELS:
        raise InvalidRequest(
            f"{name} is {width:,} × {height:,} pixels, at most {MAX_VIDEO_PIXELS:,} in all and "
            f"{MAX_VIDEO_SIDE:,} a side are taken: send a smaller video"
        )
