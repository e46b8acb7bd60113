"""Caption, or ask about, all pictures of a folder or a CSV: one JSON line each; an interrupted run can be resumed.

python clients/batch.py photos --output captions.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from clients import command_line
from clients.client import AsyncClient, ClientError
from clients.concurrent_requests import add_concurrency, answers
from clients.journal import Journal
from clients.pictures import check_file, in_folder

_EXAMPLE = """\
  python clients/batch.py photos --output captions.jsonl
  python clients/batch.py questions.csv --output answers.jsonl --concurrency 16

INPUT is a folder, whose pictures and those of the folders below it are captioned, or a CSV with a column `image`
(paths relative to the CSV's folder) and optionally `question` or `prompt`. OUTPUT gets a header line and then a JSON
line per input, failures and their reasons included, in the order of the inputs once all are done. However a run is
interrupted, the same command goes on where it stopped; failures are tried again. A file that this command did not
write is refused and kept. Exit code 0 when everything was answered, else 1."""


@dataclass(frozen=True)
class Item:
    """One input, as it stands in its line of the output."""

    image: str
    question: str | None = None
    prompt: str | None = None
    row: str | None = None  #: of a table, where it does not fit the columns: nothing is asked about it
    problem: str | None = None  #: why not

    def line(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the beginning of its line, by which a later run recognises it."""
        document = {name: value for name, value in asdict(self).items() if value is not None and name != "problem"}
        return document | ({"options": options} if options else {})


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = command_line.Parser("Caption, or ask about, many images with a running mPLUG server.", _EXAMPLE)
    parser.add_argument("input", type=Path, metavar="INPUT", help="a folder of images, or a CSV file")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines")
    parser.add_argument("--question", help="ask this about images without a question of their own")
    parser.add_argument("--prompt", help="the beginning of every caption")
    parser.add_argument("--json", action="store_true", help="print the summary as a JSON object")
    add_concurrency(parser)
    command_line.add_search(parser, "answer")
    command_line.add_server(parser)
    options = parser.parse_args(arguments)
    if options.question is not None and options.prompt is not None:
        parser.error("--question and --prompt: give one of the two")
    try:
        folder, items = _inputs(options.input, options.question, options.prompt)
        with Journal(options.output) as journal:
            failed = Batch(folder, items, options, journal).run()
    except ClientError as error:
        return command_line.fail(str(error))
    except KeyboardInterrupt:
        command_line.fail("interrupted; the same command goes on where this one was")
        return command_line.INTERRUPTED
    if options.json:
        document = {"inputs": len(items), "answered": len(items) - failed, "failed": failed}
        command_line.print_json(document | {"output": str(options.output)})
    else:
        print(f"{len(items) - failed} of {len(items)} answered: {options.output}", flush=True)
    if failed:
        return command_line.fail(
            f"{failed} of {len(items)} failed; {options.output} says why, the same command tries them again"
        )
    return 0


class Batch:
    """The inputs of a run, what an earlier run has answered of them, and the file of answers."""

    def __init__(self, folder: Path, items: list[Item], options: argparse.Namespace, journal: Journal) -> None:
        self.folder, self.items, self.options, self.journal = folder, items, options, journal
        self.search = command_line.search_options(options)
        #: What an answer depends on besides its input.
        self.line_options = self.search | ({"checkpoint": options.checkpoint} if options.checkpoint else {})

    def run(self) -> int:
        """Answer what is not answered yet; returns the number of failures. Raises ClientError."""
        wanted = Counter(self._key(item.line(self.line_options)) for item in self.items)
        answered, gone = [], 0
        for entry in self.journal.entries:
            key = self._key(entry)
            if wanted[key] == 0:
                gone += 1
            elif "error" not in entry:
                answered.append(entry)
        if gone and not any(wanted[self._key(entry)] for entry in self.journal.entries):
            raise ClientError(f"{self.journal.path} holds answers for other inputs or options: give another --output")
        if gone:
            print(f"{gone} lines of inputs that are no longer there were dropped", file=sys.stderr)
        if len(answered) < len(self.journal.entries):
            self.journal.replace(answered)
        asyncio.run(self._ask(answered))
        return self._finish(answered)

    async def _ask(self, answered: list[dict[str, Any]]) -> None:
        """Send what is left; each answer is written as it arrives, and added to `answered`."""
        done = Counter(map(self._key, answered))
        left = []
        for item in self.items:
            key = self._key(item.line(self.line_options))
            done[key] -= 1
            if done[key] < 0:
                left.append(item)
        async with AsyncClient(**command_line.connection_arguments(self.options)) as client:
            bar = tqdm(total=len(self.items), initial=len(self.items) - len(left), unit="image", disable=None)
            with bar:
                failed = 0
                asking = answers(left, lambda item: self._answer(client, item), self.options.concurrency)
                async for item, answer in asking:
                    entry = item.line(self.line_options)
                    if isinstance(answer, ClientError):
                        entry |= {"error": str(answer), "status": answer.status}
                        failed += 1
                        bar.set_postfix(failed=failed)
                    else:
                        entry |= answer
                    self.journal.append(entry)
                    answered.append(entry)
                    bar.update()

    async def _answer(self, client: AsyncClient, item: Item) -> dict[str, Any]:
        if item.problem is not None:
            raise ClientError(item.problem)
        if not item.image:
            raise ClientError("the row names no image")
        if item.question is not None and item.prompt is not None:
            raise ClientError("the row has both a question and a prompt: it may have one of the two")
        path = self.folder / item.image
        check_file(path)
        if item.question is not None:
            found = await client.vqa(path, item.question, **self.search)
            return {"answers": [asdict(each) for each in found]}
        found = await client.caption(path, item.prompt, **self.search)
        return {"captions": [asdict(each) for each in found]}

    def _finish(self, answered: list[dict[str, Any]]) -> int:
        """Write all lines in the order of the inputs; returns the number of failures."""
        by_key = defaultdict(list)
        for entry in answered:
            by_key[self._key(entry)].append(entry)
        ordered = [by_key[self._key(item.line(self.line_options))].pop(0) for item in self.items]
        if ordered != self.journal.entries:
            self.journal.replace(ordered)
        return sum("error" in entry for entry in ordered)

    @staticmethod
    def _key(entry: dict[str, Any]) -> str:
        return json.dumps(
            [entry.get(name) for name in ("image", "question", "prompt", "row", "options")], sort_keys=True
        )


def _inputs(source: Path, question: str | None, prompt: str | None) -> tuple[Path, list[Item]]:
    """Return the folder that image paths start from, and all inputs. Raises ClientError when there are none."""
    if source.is_dir():
        folder, items = source, [Item(name, question, prompt) for name in in_folder(source)]
    else:
        check_file(source)
        folder = source.parent
        items = _rows(source, question, prompt)
    if not items:
        raise ClientError(f"{source} holds no images")
    return folder, items


def _rows(path: Path, question: str | None, prompt: str | None) -> list[Item]:
    """Return the inputs of a CSV; `question` and `prompt` are for rows that have neither of their own."""
    items = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns: Sequence[str] = reader.fieldnames or ()
            if "image" not in columns:
                raise ClientError(f"{path} has no column `image`; its first line must name the columns")
            for row in reader:
                image, asked, begun = ((row.get(name) or "").strip() for name in ("image", "question", "prompt"))
                if None in row:
                    fields = [*(row[name] or "" for name in columns), *row[None]]
                    problem = (
                        f"{path} line {reader.line_num} has {len(fields)} fields, but the first line names "
                        f"{len(columns)} columns: put double quotes around a value that holds a comma"
                    )
                    command_line.fail(problem)
                    items.append(Item(image, row=",".join(fields), problem=problem))
                    continue
                asked, begun = asked or (None if begun else question), begun or (None if asked else prompt)
                items.append(Item(image, asked, begun))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClientError(f"{path} cannot be read as CSV: {reason}", "UNREADABLE") from error
    return items


if __name__ == "__main__":
    command_line.run(main)
