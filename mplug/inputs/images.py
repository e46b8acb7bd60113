"""Encoded images → upright RGB. Everything from outside is checked here, at the door.

Whatever is wrong with an input becomes an `InvalidRequest` whose message names that input. NumPy and Pillow only:
every served model imports this. What viewers show is read, what they refuse is refused.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageChops

from mplug.errors import InvalidRequest, Unavailable
from mplug.inputs.files import file_bytes
from mplug.inputs.image_files import (
    JpegStructure,
    check_jpeg,
    check_jpeg_work,
    check_ppm,
    completed_jpeg,
    seen_gif,
    seen_png,
    signature,
)

#: Formats that are opened, by Pillow's names. A fixed list: Pillow knows forty more, some of which start
#: other programs (EPS) or reach parsers that nobody sends us pictures in.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_IMAGE_BYTES = 32 * 2**20  # encoded, 32 MiB
MAX_IMAGE_PIXELS = 64 * 10**6  # declared width × height, 64 megapixels: 192 MB once decoded to RGB
MAX_IMAGE_SIDE = 16_384  # declared, pixels
#: Samples and bytes of the few kinds that Pillow decodes in Python, at one to two microseconds each.
MAX_SLOW_VALUES = 2**21
MAX_SLOW_BYTES = 2**22
#: Pixels that are being decoded at once, over all requests of this process; others wait. Decoding takes up to 11
#: bytes a pixel: a transparent picture, its RGBA copy and the RGB that is laid on white.
MAX_PIXELS_AT_ONCE = MAX_IMAGE_PIXELS

# Pillow's own limits lie above ours. What it would merely warn of is refused all the same.
warnings.simplefilter("error", Image.DecompressionBombWarning)
# A file with thousands of damaged EXIF fields is not to fill the log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# EXIF orientation → what brings the stored pixels upright (CIPA DC-008, tag 0x0112). Pillow's own
# ImageOps.exif_transpose also rewrites the rest of the EXIF data, and fails where any of it has a wrong type.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PixelBudget:
    """Bounds the pixels that are being decoded at once; callers wait for their share."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Hold so many pixels; more than there are in all count as all of them."""
        pixels = min(pixels, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._used + pixels <= self._most)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_budget = PixelBudget(MAX_PIXELS_AT_ONCE)


def decode_image(data: bytes, *, name: str = "IMAGE") -> Image.Image:
    """Decode one encoded picture to an upright RGB image.

    The first frame counts. EXIF orientation is applied; transparency is laid on white, as viewers show it;
    16-bit samples keep their high byte; colour profiles are ignored, as they were in training. A JPEG that lacks
    only the marker of its end is read, as are PNGs with damage in what is not seen.

    `data` is a whole file in one of `IMAGE_FORMATS`, or a data URI of one, `name` the input's name for messages.
    Raises InvalidRequest when it is empty, not an image, truncated or damaged, or larger than `MAX_IMAGE_BYTES`,
    `MAX_IMAGE_PIXELS` or `MAX_IMAGE_SIDE`, which the header is judged by before a pixel is decoded; and Unavailable
    when memory is short.
    """
    data = file_bytes(data, MAX_IMAGE_BYTES, name)
    if not data:
        raise InvalidRequest(f"{name} is empty: send the bytes of an encoded image ({_formats()})")
    kind = signature(data)
    if kind is None:  # Pillow's readers know more first bytes than these, which nobody sends
        raise InvalidRequest(f"{name} is not an image in a known format ({_formats()})")
    if kind == "PNG":
        data = seen_png(data, name)
    elif kind == "GIF":
        data = seen_gif(data, name)
    elif kind == "PPM":
        check_ppm(data, name)
    jpeg = JpegStructure.read(data) if kind == "JPEG" else None
    if jpeg is not None:
        check_jpeg(jpeg, name)
        data = jpeg.seen
    try:
        image = _open(data, name)
        _check_size(image.size, name)
        _check_python_work(image, len(data), name)
        if jpeg is not None:
            check_jpeg_work(jpeg, image.width * image.height, name)
        with _budget.take(image.width * image.height):
            if jpeg is not None and not jpeg.ended:
                return _decode_unended(data, name)
            return _decode(image, name)
    except MemoryError as error:
        raise Unavailable(f"{name}: not enough memory to decode it now; try again later") from error


def _decode_unended(data: bytes, name: str) -> Image.Image:
    """A JPEG that stops before its end: whole if what follows makes no difference to its pixels."""
    at_once, later = (_decode(_open(version, name), name) for version in completed_jpeg(data))
    if ImageChops.difference(at_once, later).getbbox() is not None:
        raise InvalidRequest(f"{name} cannot be decoded, the JPEG data is truncated or damaged (it ends too early)")
    return at_once


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        # Never image.draft(): scaling inside the JPEG decoder is faster, but is not what was trained with.
        image.load()
        # Only now, since Pillow turns TIFFs upright itself while loading and then drops the tag.
        orientation = _orientation(image)
        rgb = _to_rgb(image, name)
    except (InvalidRequest, MemoryError):
        raise
    except Exception as error:  # decoders raise about anything on hostile bytes; all of it is the sender's
        raise InvalidRequest(
            f"{name} cannot be decoded, the {image.format} data is truncated or damaged ({_one_line(error)})"
        ) from error
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def _open(data: bytes, name: str) -> Image.Image:
    """The image with its header read and nothing decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(
            f"{name} declares more pixels than the {MAX_IMAGE_PIXELS:,} that are taken: send a smaller image"
        ) from error
    except Exception as error:
        reason = f"the {signature(data)} data is truncated or damaged"
        raise InvalidRequest(f"{name} cannot be decoded, {reason}") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidRequest(f"{name} is {width} × {height} pixels: there is nothing to see")
    if max(width, height) > MAX_IMAGE_SIDE or width * height > MAX_IMAGE_PIXELS:
        raise InvalidRequest(
            f"{name} is {width:,} × {height:,} pixels, at most {MAX_IMAGE_PIXELS:,} in all and "
            f"{MAX_IMAGE_SIDE:,} a side are taken: send a smaller image"
        )


def _check_python_work(image: Image.Image, size: int, name: str) -> None:
    """Bound what Pillow decodes value by value in Python: compressed BMPs, PPMs as text or of odd depth."""
    if not any(tile.codec_name in Image.DECODERS for tile in image.tile):
        return
    values = image.width * image.height * len(image.getbands())
    if values > MAX_SLOW_VALUES or size > MAX_SLOW_BYTES:
        raise InvalidRequest(
            f"{name} is a compressed BMP, or a PPM written as text or of unusual depth, of {values:,} samples in "
            f"{size:,} bytes; at most {MAX_SLOW_VALUES:,} in {MAX_SLOW_BYTES:,} are taken: send it as PNG"
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Any decoded mode → RGB, 8 bit."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image, name)
    if image.has_transparency_data:
        # Covers alpha channels, palettes with transparent entries and a single transparent colour.
        layers = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(layers, mask=layers.getchannel("A"))
        return flat
    # Pillow has already undone the inversion of Adobe's CMYK JPEGs.
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Grey of more than 8 bits → RGB; Pillow's own conversion clips it at 255, that is to white."""
    samples = np.asarray(image)
    if image.mode == "F" or samples.min() < 0 or samples.max() > 0xFFFF:
        raise InvalidRequest(f"{name} has 32-bit samples, whose range is not defined: send 8 or 16 bits per channel")
    # The high byte, which is also what Pillow keeps of 16-bit colour.
    grey = (samples.astype(np.uint16) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1…8; unreadable EXIF counts as upright, since the picture itself is fine."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation)
    except Exception:
        return 1


def _formats() -> str:
    return f"{', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
