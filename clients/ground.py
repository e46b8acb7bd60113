"""Where in a picture something is, by a running server.

python clients/ground.py photo.jpg "the left dog" --output found.png
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import ExifTags, Image, ImageDraw

from clients import command_line
from clients.client import Client, ClientError, Grounding
from clients.client.images import as_shown
from clients.outputs import check_output, replacing

_EXAMPLE = """\
  python clients/ground.py photo.jpg "the left dog" --output found.png
  12.0 40.5 96.0 180.0

Left, top, right and bottom in pixels of the image as a viewer shows it (its EXIF orientation applied), and the
expression where there are several."""

_COLOURS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4")
_MARK = "mPLUG clients/ground.py"
_MARKED = ("JPEG", "PNG", "WEBP", "TIFF")  # formats that hold the mark; an existing file of another one is kept
_CASING = "white"  # around the coloured line, so that it is seen on any background


def main(arguments: list[str] | None = None) -> int:
    """Print a box per expression as it arrives and draw them; returns the exit code."""
    parser = command_line.Parser("Find what expressions describe in an image with a running mPLUG server.", _EXAMPLE)
    parser.add_argument("image", metavar="IMAGE", help="image file: JPEG, PNG, WebP …")
    parser.add_argument("expressions", nargs="+", metavar="EXPRESSION")
    parser.add_argument(
        "--output", metavar="PICTURE", help="write the image with the boxes drawn; the ending selects the format"
    )
    command_line.add_json(parser, "expression")
    command_line.add_server(parser)
    options = parser.parse_intermixed_args(arguments)
    if options.output is not None:
        _check_format(parser, options.output, options.image)
        try:
            check_output(Path(options.output), _is_ours)
        except ClientError as error:
            return command_line.fail(str(error))
    boxes: list[tuple[float, float, float, float]] = []

    def ask(client: Client, expression: str) -> Grounding:
        return client.ground(options.image, expression)

    def show(expression: str, found: Grounding) -> None:
        boxes.append(found.box)
        if options.json:
            command_line.print_json({"expression": expression} | asdict(found))
            return
        behind = f"\t{expression}" if len(options.expressions) > 1 else ""
        print(" ".join(f"{edge:.1f}" for edge in found.box) + behind, flush=True)

    subjects = [(expression, {"expression": expression}) for expression in options.expressions]
    code = command_line.ask_each(options, subjects, ask, show, noun="expression")
    if options.output is not None and boxes:
        try:
            _save(with_boxes(as_shown(options.image), boxes), Path(options.output))
        except (ClientError, OSError, ValueError) as error:  # the format may not hold so large a picture
            return command_line.fail(str(error) if isinstance(error, ClientError) else f"{options.output}: {error}")
    return code


def with_boxes(image: Image.Image, boxes: list[tuple[float, float, float, float]]) -> Image.Image:
    """A copy of the image with boxes (x0, y0, x1, y1) drawn into it, each in a colour of its own."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(min(image.size) / 100))
    for index, (left, top, right, bottom) in enumerate(boxes):
        # A line cannot be drawn between two pixels: it lies inside the box.
        box = (left, top, max(left, right - 1), max(top, bottom - 1))
        around = (box[0] - width, box[1] - width, box[2] + width, box[3] + width)
        pen.rectangle(around, outline=_CASING, width=3 * width)
        pen.rectangle(box, outline=_COLOURS[index % len(_COLOURS)], width=width)
    return drawn


def _check_format(parser: command_line.Parser, output: str, image: str) -> None:
    """Refuse wrong usage before the server is asked."""
    if Image.registered_extensions().get(Path(output).suffix.lower()) not in Image.SAVE:
        parser.error(f"--output {output}: its ending names no picture format; .png and .jpg do")
    if Path(output).exists() and Path(image).exists() and Path(output).samefile(image):
        parser.error(f"--output {output}: this is the image itself")


def _save(picture: Image.Image, path: Path) -> None:
    """Write a picture with our mark in it, by which a later run knows that it may replace it."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    options = {}
    if kind in _MARKED:
        exif = Image.Exif()
        exif[ExifTags.Base.Software] = _MARK
        options["exif"] = exif
    with replacing(path) as file:
        picture.save(file, kind, **options)


def _is_ours(path: Path) -> bool:
    with Image.open(path, formats=_MARKED) as picture:
        return picture.getexif().get(ExifTags.Base.Software) == _MARK


if __name__ == "__main__":
    command_line.run(main)
