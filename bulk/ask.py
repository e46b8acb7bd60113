"""Ask about every picture of a corpus without a server: one question of all, or each input's own.

python bulk/ask.py photos answers --question "what is this?"
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bulk import command

_EXAMPLE = """\
  python bulk/ask.py photos answers --question "what is this?"
  python bulk/ask.py questions.parquet answers --question-column question --key-column id
  python bulk/ask.py shards answers --question-column txt

A row per input: `input`, `key`, `question`, `answer`, `score`, and `error` where there is no answer."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = command.Parser("Ask about every picture of a corpus.", _EXAMPLE)
    command.add_corpus(parser)
    parser.add_argument("--question", metavar="TEXT", help="asked of all inputs that have no question of their own")
    parser.add_argument("--question-column", metavar="NAME", help="where the inputs' own questions stand")
    parser.add_argument("--candidates", nargs="+", default=[], metavar="TEXT", help="rank these, write none freely")
    command.add_search(parser)
    options = parser.parse_args(arguments)
    if options.question is None and options.question_column is None:
        parser.error("give --question TEXT, --question-column NAME, or both")
    tasks, run = command.load("bulk.tasks"), command.load("bulk.run")
    task = tasks.Task.ask(command.search_options(options), options.question, tuple(options.candidates))
    return run.run(options, task)


if __name__ == "__main__":
    command.run(main)
