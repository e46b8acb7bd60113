"""Whether a statement is true of two pictures, by a running server.

python clients/nlvr.py left.jpg right.jpg "both pictures show a dog"
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clients import command_line
from clients.client import Client, Verdict

_EXAMPLE = """\
  python clients/nlvr.py left.jpg right.jpg "both pictures show a dog" "one picture shows a cat"
  true\t0.912\tboth pictures show a dog
  false\t0.874\tone picture shows a cat

The label, its probability, and the statement where there are several."""


def main(arguments: list[str] | None = None) -> int:
    """Print a verdict per statement as it arrives; returns the exit code."""
    parser = command_line.Parser("Judge statements about two images with a running mPLUG server.", _EXAMPLE)
    parser.add_argument("left", metavar="LEFT", help="image file: JPEG, PNG, WebP …")
    parser.add_argument("right", metavar="RIGHT", help="image file of the right picture")
    parser.add_argument("statements", nargs="+", metavar="STATEMENT")
    command_line.add_json(parser, "statement")
    command_line.add_server(parser)
    options = parser.parse_intermixed_args(arguments)

    def ask(client: Client, statement: str) -> Verdict:
        return client.nlvr((options.left, options.right), statement)

    def show(statement: str, verdict: Verdict) -> None:
        if options.json:
            command_line.print_json({"statement": statement} | asdict(verdict))
            return
        behind = f"\t{statement}" if len(options.statements) > 1 else ""
        print(f"{verdict.label}\t{verdict.probability:.3f}{behind}", flush=True)

    subjects = [(statement, {"statement": statement}) for statement in options.statements]
    return command_line.ask_each(options, subjects, ask, show, noun="statement")


if __name__ == "__main__":
    command_line.run(main)
