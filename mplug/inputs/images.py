"""What clients send, turned into arrays: encoded images → pixels, bytes → text.

Everything from outside is checked here, at the door: whatever is wrong with an input becomes an
`InvalidRequest` whose message names that input. NumPy and Pillow only: every served model imports this.

The numbers (resampling, mean and std, the grounding canvas) are those that the published weights were
trained with: arXiv 2205.12005 and its published implementation.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from mplug.errors import InvalidRequest

#: Formats that are opened, by Pillow's names. A fixed list: Pillow knows forty more, some of which start
#: other programs (EPS) or reach parsers that nobody sends us pictures in.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_IMAGE_BYTES = 32 * 2**20  # encoded, 32 MiB
MAX_IMAGE_PIXELS = 64 * 10**6  # declared width × height, 64 megapixels: 192 MB once decoded to RGB
MAX_IMAGE_SIDE = 16_384  # declared, pixels
MAX_TEXT_CHARACTERS = 2_000

# CLIP's statistics of RGB scaled to 0…1 (Radford et al. 2021, arXiv 2103.00020, published preprocessing).
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

# The normalised value of each of the 256 levels, [3, 256]. Looking levels up gives bit for bit what the
# arithmetic on whole images gives, for less work.
_LEVELS = (np.arange(256, dtype=np.float32) / np.float32(255) - PIXEL_MEAN[:, None]) / PIXEL_STD[:, None]

# Pillow's own limits lie above ours. What it would merely warn of is refused all the same.
warnings.simplefilter("error", Image.DecompressionBombWarning)

_DATA_URI = b"data:"

# First bytes → format, to tell a damaged picture from something that never was one.
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}

# EXIF orientation → what brings the stored pixels upright (CIPA DC-008, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_NOT_IN_CAPTIONS = str.maketrans({**dict.fromkeys(",.'!?\"()*#:;~"), "-": " ", "/": " "})


# ---------------------------------------------------------------------------------------------- images


def file_bytes(data: bytes, most: int, name: str) -> bytes:
    """A whole file from what was sent: its bytes, or a data URI of them (RFC 2397, base64).

    JSON carries text alone, so `data:image/png;base64,…` is how a picture travels in it. `most` bytes are
    taken, `name` is the input's name for messages. Raises `InvalidRequest`, for a long text before it is decoded.
    """
    if data.startswith(_DATA_URI):
        header, _, text = data.partition(b",")
        if not header.endswith(b";base64"):
            raise InvalidRequest(f"{name} is a data URI without base64 in it: send data:image/png;base64,…")
        if len(text) // 4 * 3 > most + 2:  # 2: what its padding may stand for
            raise InvalidRequest(f"{name} has {len(text) // 4 * 3:,} bytes, at most {most:,} are taken")
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise InvalidRequest(f"{name} is a data URI whose base64 is damaged ({error})") from error
    if len(data) > most:
        raise InvalidRequest(f"{name} has {len(data):,} bytes, at most {most:,} are taken: send a smaller file")
    return data


def decode_image(data: bytes, *, name: str = "IMAGE") -> Image.Image:
    """One encoded picture as an upright RGB image.

    The first frame counts. EXIF orientation is applied; transparency is laid on white, as viewers show it;
    16-bit samples keep their high byte; colour profiles are ignored, as they were in training.

    `data` is a whole file in one of `IMAGE_FORMATS`, or a data URI of one, `name` the input's name for messages.
    Raises `InvalidRequest` when it is empty, not an image, truncated or damaged, or larger than
    `MAX_IMAGE_BYTES`, `MAX_IMAGE_PIXELS` or `MAX_IMAGE_SIDE`. Sizes are judged by the header, before a
    pixel is decoded.
    """
    data = file_bytes(data, MAX_IMAGE_BYTES, name)
    if not data:
        raise InvalidRequest(f"{name} is empty: send the bytes of an encoded image ({_formats()})")
    image = _open(data, name)
    _check_size(image.size, name)
    try:
        # Never image.draft(): scaling inside the JPEG decoder is faster, but is not what was trained with.
        image.load()
        # Only now, since Pillow turns TIFFs upright itself while loading and then drops the tag.
        orientation = _orientation(image)
        image = _to_rgb(image, name)
    except (InvalidRequest, MemoryError):
        raise
    except Exception as error:  # decoders raise about anything on hostile bytes; all of it is the sender's
        raise InvalidRequest(
            f"{name} cannot be decoded, the {image.format} data is truncated or damaged ({_one_line(error)})"
        ) from error
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return image


def pixel_values(image: Image.Image, size: int) -> np.ndarray:
    """An image as the vision encoder takes it: float32 [3, size, size], normalised.

    Resized to a square with Pillow's bicubic filter; the aspect ratio is not kept, as in training.
    """
    return _normalise(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies on the square canvas that grounding looks at. All lengths in pixels."""

    width: int  # of the image as sent, upright
    height: int
    size: int  # side of the canvas
    left: int  # of the resized image on the canvas
    top: int

    @property
    def ratio(self) -> float:
        """Canvas pixels per image pixel."""
        return self.size / max(self.width, self.height)

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height of the image on the canvas; at least 1, however narrow the image."""
        return max(1, round(self.width * self.ratio)), max(1, round(self.height * self.ratio))

    @classmethod
    def of(cls, width: int, height: int, size: int) -> Letterbox:
        """The placing of a `width` × `height` image: long side to `size`, then centred.

        Where the space left is odd, the smaller half goes above and to the left; the published code says
        `round(space / 2 - 0.1)`.
        """
        resized_width, resized_height = cls(width, height, size, 0, 0).resized
        return cls(width, height, size, (size - resized_width) // 2, (size - resized_height) // 2)

    def to_image(self, box: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
        """A box on the canvas as corners in the image as sent.

        `box`: centre x, centre y, width, height, each relative to the canvas side (0…1).
        Returns x0, y0, x1, y1 in pixels of the upright image, clipped to it.
        """
        centre_x, centre_y, width, height = (float(value) * self.size for value in box)

        def place(canvas: float, offset: int, limit: int) -> float:
            return min(max((canvas - offset) / self.ratio, 0.0), float(limit))

        return (
            place(centre_x - width / 2, self.left, self.width),
            place(centre_y - height / 2, self.top, self.height),
            place(centre_x + width / 2, self.left, self.width),
            place(centre_y + height / 2, self.top, self.height),
        )


def letterbox_pixel_values(image: Image.Image, size: int) -> tuple[np.ndarray, Letterbox]:
    """An image as grounding takes it: float32 [3, size, size] and where the image lies on it.

    The long side becomes `size`, the rest of the canvas is zero *after* normalisation, that is mean colour.
    Bilinear, unlike `pixel_values`: so the published grounding weights were trained.
    """
    letterbox = Letterbox.of(*image.size, size)
    width, height = letterbox.resized
    canvas = np.zeros((3, size, size), dtype=np.float32)
    rows = slice(letterbox.top, letterbox.top + height)
    columns = slice(letterbox.left, letterbox.left + width)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    canvas[:, rows, columns] = _normalise(resized)
    return canvas, letterbox


# ------------------------------------------------------------------------------------------------ text


def as_text(data: bytes, name: str) -> str:
    """The text of one BYTES element; raises `InvalidRequest` naming `name`.

    Refused: bytes that are not UTF-8, text without a single visible character, and more than
    `MAX_TEXT_CHARACTERS` (the encoders read a few dozen tokens, the rest would be dropped unseen).
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise InvalidRequest(f"{name} is empty: send at least one visible character")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidRequest(
            f"{name} has {len(text):,} characters, at most {MAX_TEXT_CHARACTERS:,} are taken: send less text"
        )
    return text


def clean_caption(text: str) -> str:
    """A caption or retrieval text as in training: lower case, without ,.'!?"()*#:;~ and runs of blanks.

    `-` and `/` become blanks, and the `<person>` of anonymised captions becomes the word.
    """
    return " ".join(text.lower().translate(_NOT_IN_CAPTIONS).replace("<person>", "person").split())


def clean_question(text: str, words: int) -> str:
    """Return the first `words` of what was read in a picture, without the marks that captions lose.

    As the published `pre_question` does it, where blanks in a row enclose words without letters, which count, too.
    """
    return " ".join(text.lower().translate(_NOT_IN_CAPTIONS).rstrip(" ").split(" ")[:words])


# --------------------------------------------------------------------------------------------- details


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
        found = _signature(data)
        if found is None:
            raise InvalidRequest(f"{name} is not an image in a known format ({_formats()})") from error
        raise InvalidRequest(f"{name} cannot be decoded, the {found} data is truncated or damaged") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidRequest(f"{name} is {width} × {height} pixels: there is nothing to see")
    if max(width, height) > MAX_IMAGE_SIDE or width * height > MAX_IMAGE_PIXELS:
        raise InvalidRequest(
            f"{name} is {width:,} × {height:,} pixels, at most {MAX_IMAGE_PIXELS:,} in all and "
            f"{MAX_IMAGE_SIDE:,} a side are taken: send a smaller image"
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


def _normalise(image: Image.Image) -> np.ndarray:
    """RGB image [H, W] → float32 [3, H, W]."""
    levels = np.asarray(image)
    return np.stack([_LEVELS[channel][levels[:, :, channel]] for channel in range(3)])


def _signature(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PPM"
    return next((kind for first, kind in _SIGNATURES.items() if data.startswith(first)), None)


def _formats() -> str:
    return f"{', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
