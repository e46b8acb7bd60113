"""Whether a picture entails a hypothesis, contradicts it, or neither, by a running server.

python clients/entail.py photo.jpg "two people are outdoors"
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clients import command_line
from clients.client import ENTAILMENT_LABELS, Client, Entailment

_EXAMPLE = """\
  python clients/entail.py photo.jpg "two people are outdoors"
  entailment\t0.931

The label, its probability, and the hypothesis where there are several."""


def main(arguments: list[str] | None = None) -> int:
    """Print a label per hypothesis as they come; returns the exit code."""
    parser = command_line.Parser("Judge hypotheses about an image with a running mPLUG server.", _EXAMPLE)
    parser.add_argument("image", metavar="IMAGE", help="image file: JPEG, PNG, WebP …")
    parser.add_argument("hypotheses", nargs="+", metavar="HYPOTHESIS")
    command_line.add_json(parser, "hypothesis, with the probabilities of all three labels")
    command_line.add_server(parser)
    options = parser.parse_intermixed_args(arguments)

    def ask(client: Client, hypothesis: str) -> Entailment:
        return client.entail(options.image, hypothesis)

    def show(hypothesis: str, found: Entailment) -> None:
        probabilities = dict(zip(ENTAILMENT_LABELS, found.probabilities, strict=True))
        if options.json:
            judged = {"hypothesis": hypothesis, "label": found.label, "probabilities": probabilities}
            command_line.print_json(judged)
            return
        behind = f"\t{hypothesis}" if len(options.hypotheses) > 1 else ""
        print(f"{found.label}\t{probabilities[found.label]:.3f}{behind}", flush=True)

    subjects = [(hypothesis, {"hypothesis": hypothesis}) for hypothesis in options.hypotheses]
    return command_line.ask_each(options, subjects, ask, show, noun="hypothesis")


if __name__ == "__main__":
    command_line.run(main)
