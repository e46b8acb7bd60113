"""The examples in README.md and docs/: found, run against a server, and their output compared in shape.

A block of `sh` or `python` runs if the line before it is `<!-- tested -->`. A block of `text` that follows is what
it prints, for other weights perhaps with other words and figures: what must agree is its shape.

For new weights, have the pages say what their examples print:

    python -m mplug.server build/demo --run tests/e2e/docs_examples.py {http} {grpc}
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(CHECKOUT)

from mplug.server.command import TritonServer  # noqa: E402
from tests.e2e.openai_endpoint import endpoint_of  # noqa: E402

PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
SECONDS = 120

_BLOCK = re.compile(
    r"^<!-- tested -->\n```(?P<language>sh|python)\n(?P<code>.*?)^```\n"
    r"(?:\n?```text\n(?P<output>.*?)^```$)?",
    re.M | re.S,
)
_ERROR_ROW = re.compile(r"^\| `(?P<change>\{.*\})` \| `(?P<message>.*)` \|$", re.M)
_NUMBER = re.compile(r"[-−+]?\d+(\.\d+)?%?")
#: A command line of ours takes the server's address, which a reader's server has by default.
_COMMAND = re.compile(r"(python (?:\S*/)?clients/\w+\.py(?: (?:index|search)\b)?)")


@dataclass(frozen=True)
class Example:
    """One block, and what the page says it prints (None: nothing is said)."""

    page: Path
    line: int
    language: str
    code: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"

    def run(self, server: TritonServer, endpoint: str, scratch: Path) -> str:
        """Return what it prints against this server, or in its own process over what the server serves.

        `endpoint`: HOST:PORT of the OpenAI-compatible endpoint before it. What it writes to `build/` goes to `scratch`.
        Fails when it does.
        """
        code = self.code.replace("localhost:8000", server.http_url).replace("localhost:8001", server.grpc_url)
        code = code.replace("localhost:8080", endpoint)
        code = code.replace('"build/demo"', f'"{server.repository.resolve()}"')
        code = code.replace(" build/", f" {scratch}/").replace(".venv/bin/python", "python")
        if self.language == "sh":

            def with_url(command: re.Match[str]) -> str:
                line = code[command.end() :].split("\n", 1)[0]
                return f"{command[1]} --url {server.http_url if '--protocol http' in line else server.grpc_url}"

            command = ["bash", "-euo", "pipefail", "-c", _COMMAND.sub(with_url, code)]
        else:
            command = [sys.executable, "-c", code]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, f"{self}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


def examples(page: Path) -> Iterator[Example]:
    """Those of a page that run, in its order."""
    text = page.read_text()
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code")) + 1
        yield Example(page, line, block["language"], block["code"], block["output"])


def errors(page: Path) -> list[tuple[dict[str, object], str]]:
    """Of a model's page: what is changed in a good request, and the message that answers it."""
    return [(json.loads(row["change"]), row["message"]) for row in _ERROR_ROW.finditer(page.read_text())]


def fits(printed: str, shown: str) -> bool:
    """Whether what was printed has the shape of what a page shows: lines, columns, numbers, files, keys of JSON."""
    lines, wanted = printed.rstrip("\n").split("\n"), shown.rstrip("\n").split("\n")
    return len(lines) == len(wanted) and all(map(_line_fits, lines, wanted))


def _line_fits(printed: str, shown: str) -> bool:
    try:
        document = json.loads(shown)
    except ValueError:
        columns, wanted = printed.split("\t"), shown.split("\t")
        return len(columns) == len(wanted) and all(map(_column_fits, columns, wanted))
    try:
        return _value_fits(json.loads(printed), document)
    except ValueError:
        return False


def _column_fits(printed: str, shown: str) -> bool:
    if shown and (CHECKOUT / shown).exists():
        return printed == shown
    numbers = list(itertools.takewhile(_NUMBER.fullmatch, shown.split(" ")))
    words = printed.split(" ")
    if len(numbers) == len(shown.split(" ")):  # nothing but numbers
        return len(words) == len(numbers) and all(map(_NUMBER.fullmatch, words))
    return len(words) >= len(numbers) and all(map(_NUMBER.fullmatch, words[: len(numbers)]))


def _value_fits(printed: object, shown: object) -> bool:
    if isinstance(shown, dict):
        return (
            isinstance(printed, dict)
            and list(printed) == list(shown)
            and all(_value_fits(printed[key], shown[key]) for key in shown)
        )
    if isinstance(shown, list):
        if not isinstance(printed, list) or bool(printed) != bool(shown):
            return False
        alike = all(type(each) is type(shown[0]) for each in shown)  # a list of any length
        return all(_value_fits(each, shown[0]) for each in printed) if alike else len(printed) == len(shown)
    if isinstance(shown, str):
        return isinstance(printed, str) and _column_fits(printed, shown)
    return isinstance(printed, int | float) if isinstance(shown, int | float) else printed == shown


def write_outputs(server: TritonServer, endpoint: str) -> None:
    """Run every example whose output a page shows, and write what it prints into the page."""
    for page in PAGES:
        for example in examples(page):
            if example.output is None:
                continue
            with tempfile.TemporaryDirectory() as folder:
                printed = example.run(server, endpoint, Path(folder)).rstrip("\n") + "\n"
            shown = f"{example.code}```\n```text\n"
            page.write_text(page.read_text().replace(shown + example.output, shown + printed))
            print(example)


if __name__ == "__main__":
    served = types.SimpleNamespace(http_url=sys.argv[1], grpc_url=sys.argv[2], repository=CHECKOUT / "build" / "demo")
    with endpoint_of(served.grpc_url) as address:
        write_outputs(served, address)
