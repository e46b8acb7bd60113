"""Ask questions about pictures of a running server.

python clients/ask.py photo.jpg "what colour is the dog"
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clients import command_line
from clients.client import Answer, Client

_EXAMPLE = """\
  python clients/ask.py photo.jpg "what colour is the dog"
  brown
  python clients/ask.py photo.jpg "is it raining" --candidates yes no --num-return 2
  0.981\tno
  0.019\tyes
  python clients/ask.py --video clip.mp4 "what is the dog doing"

Exit code 0 when every image got its answer, else 1 and a line on stderr for what failed."""


def main(arguments: list[str] | None = None) -> int:
    """Print an answer per image as they come; returns the exit code."""
    parser = command_line.Parser("Ask a running mPLUG server a question about images or a video.", _EXAMPLE)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image file: JPEG, PNG, WebP …")
    parser.add_argument("question", metavar="QUESTION", help="asked about every image; comes last")
    parser.add_argument(
        "--candidates",
        nargs="+",
        metavar="ANSWER",
        help="rank these answers instead of writing one; all are shown, with their probabilities",
    )
    parser.add_argument("--ocr", nargs="+", metavar="WORD", help="words read in the picture, appended to the question")
    parser.add_argument(
        "--objects", nargs="+", metavar="LABEL", help="labels of things in the picture, appended to the question"
    )
    command_line.add_json(parser, "image, scores included")
    command_line.add_video(parser)
    command_line.add_search(parser, "answer")
    command_line.add_server(parser)
    options = parser.parse_intermixed_args(arguments)
    subjects = command_line.visual_subjects(parser, options, options.images)
    search = command_line.search_options(options)

    def ask(client: Client, **visual: object) -> list[Answer]:
        return client.vqa(
            question=options.question,
            candidates=options.candidates,
            ocr=options.ocr,
            objects=options.objects,
            **visual,
            **search,
        )

    def show(name: str, answers: list[Answer]) -> None:
        if options.json:
            answered = {"question": options.question, "answers": [asdict(each) for each in answers]}
            command_line.print_json({"image": name} | answered)
            return
        before = f"{name}\t" if len(subjects) > 1 else ""
        for answer in answers:
            probability = f"{answer.score:.3f}\t" if options.candidates else ""
            print(f"{before}{probability}{answer.text}", flush=True)

    return command_line.ask_each(options, subjects, ask, show)


if __name__ == "__main__":
    command_line.run(main)
