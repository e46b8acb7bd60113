"""How well texts fit a picture or a video, by a running server.

python clients/match.py photo.jpg "a dog" "a cat"
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clients import command_line
from clients.client import Client, Match

_EXAMPLE = """\
  python clients/match.py photo.jpg "a dog on a beach" "a cat"
  5.214\t0.412\ta dog on a beach
  -6.033\t0.108\ta cat
  python clients/match.py --video clip.mp4 "a dog runs" "a dog sleeps"

Best first: the logit of the matching head (for a video, plus the similarity), the similarity of the embeddings, and
the text."""


def main(arguments: list[str] | None = None) -> int:
    """Print a line per text, best first; returns the exit code."""
    parser = command_line.Parser("Rank texts by how well they fit an image or a video.", _EXAMPLE)
    parser.add_argument(
        "given",
        nargs="+",
        metavar="IMAGE TEXT",
        help="an image file (JPEG, PNG, WebP …), unless --video or --frames is given; then 1 to 256 texts",
    )
    command_line.add_json(parser, "image, with the texts in the order given")
    command_line.add_video(parser)
    command_line.add_server(parser)
    options = parser.parse_intermixed_args(arguments)
    is_video = options.video is not None or options.frames is not None
    pictures, texts = ([], options.given) if is_video else (options.given[:1], options.given[1:])
    subjects = command_line.visual_subjects(parser, options, pictures)
    if not texts:
        parser.error("give an image, or --video or --frames, and at least one text")

    def ask(client: Client, **visual: object) -> list[Match]:
        return client.match(texts=texts, **visual)

    def show(name: str, matches: list[Match]) -> None:
        pairs = list(zip(texts, matches, strict=True))
        if options.json:
            found = [{"text": text} | asdict(match) for text, match in pairs]
            command_line.print_json({"image": name, "matches": found})
            return
        for text, match in sorted(pairs, key=lambda pair: -pair[1].score):
            print(f"{match.score:.3f}\t{match.similarity:.3f}\t{text}", flush=True)

    return command_line.ask_each(options, subjects, ask, show)


if __name__ == "__main__":
    command_line.run(main)
