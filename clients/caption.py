"""Caption pictures with a running server.

python clients/caption.py examples/cat.jpg
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clients import command_line
from clients.client import Caption, Client

_EXAMPLE = """\
  python clients/caption.py photo.jpg other.png --num-beams 3
  photo.jpg\ta cat asleep on a chair
  other.png\ttwo people on a beach
  python clients/caption.py --video clip.mp4
  a cat jumps off a chair

Exit code 0 when every image got its caption, else 1 and a line on stderr for what failed."""


def main(arguments: list[str] | None = None) -> int:
    """Print a caption per image as they come; returns the exit code."""
    parser = command_line.Parser("Caption images or a video with a running mPLUG server.", _EXAMPLE)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image file: JPEG, PNG, WebP …")
    parser.add_argument("--prompt", help="the beginning of every caption")
    command_line.add_json(parser, "image, scores included")
    command_line.add_video(parser)
    command_line.add_search(parser, "caption")
    command_line.add_server(parser)
    options = parser.parse_intermixed_args(arguments)
    subjects = command_line.visual_subjects(parser, options, options.images)
    search = command_line.search_options(options)

    def ask(client: Client, **visual: object) -> list[Caption]:
        return client.caption(prompt=options.prompt, **visual, **search)

    def show(name: str, captions: list[Caption]) -> None:
        if options.json:
            command_line.print_json({"image": name, "captions": [asdict(each) for each in captions]})
            return
        for caption in captions:
            print(f"{name}\t{caption.text}" if len(subjects) > 1 else caption.text, flush=True)

    return command_line.ask_each(options, subjects, ask, show)


if __name__ == "__main__":
    command_line.run(main)
