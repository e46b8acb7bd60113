"""What bulk work costs beside a server: CPU seconds of all processes, for the same pictures in the same run.

    make bulk
    python -m benchmarks.parts.bulk_cost --repository build/demo [--rounds 3] [--page docs/bulk.md]

Each round captions the same folders twice, in an order that alternates: with `clients/batch.py`, which asks a server
that is started for it, and with `bulk/caption.py`, which starts Ray. Each does a small folder and a large one; the
difference of the two is what pictures cost, and the rest what starting costs. The captions are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import machine
from benchmarks.measure.bulk_environment import add_bulk_options, check_bulk_python, rows_of
from benchmarks.measure.descendants import CpuTimes, adopted, wait_for_all
from benchmarks.measure.pictures import picture
from benchmarks.page import write_section
from benchmarks.workspace import ROOT, say
from mplug.server.command import TritonServer

#: Of the small folder; a run of none would be no run.
FEW = 64
END_SECONDS = 60.0  # for Ray's processes, after the command
#: The goal: CPU per picture of bulk work, divided by that of the server and its client.
MOST = 0.8


class Contenders:
    """Both ways, with the same pictures, and the captions that each gave."""

    def __init__(self, repository: Path, bulk_python: Path, folder: Path, pictures: int) -> None:
        self._repository, self._bulk_python, self._folder = repository, bulk_python, folder
        for name, number in (("few", FEW), ("many", FEW + pictures)):
            (folder / name).mkdir()
            for seed in range(number):
                (folder / name / f"{seed:06}.jpg").write_bytes(picture(seed))
        self.captions: dict[str, dict[str, str]] = {}
        self._runs = 0

    def served(self, name: str) -> None:
        """Caption a folder with `clients/batch.py` and a server of its own."""
        output = self._new_output("jsonl")
        with TritonServer(self._repository) as server:
            command = [sys.executable, ROOT / "clients" / "batch.py", self._folder / name, "--output", output]
            self._run([*command, "--url", server.grpc_url])
        lines = [json.loads(line) for line in output.read_text().splitlines()[1:]]
        self.captions["served"] = {line["image"]: line["captions"][0]["text"] for line in lines}

    def bulk(self, name: str) -> None:
        """Caption a folder with `bulk/caption.py`."""
        output = self._new_output("parquet")
        command = [self._bulk_python, ROOT / "bulk" / "caption.py", self._folder / name, output]
        self._run([*command, "--repository", self._repository])
        self.captions["bulk"] = dict(rows_of(self._bulk_python, output, "input", "caption"))

    def _new_output(self, suffix: str) -> Path:
        self._runs += 1
        return self._folder / f"{self._runs}.{suffix}"

    @staticmethod
    def _run(command: Sequence[object]) -> None:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command[1]} has failed: {done.stderr.strip()}")


def measure(contenders: Contenders, pictures: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return for `served` and `bulk` CPU milliseconds per picture and CPU seconds of a start, of each round."""
    found: dict[str, list[tuple[float, float]]] = {"served": [], "bulk": []}
    ways: list[tuple[str, Callable[[str], None]]] = [("served", contenders.served), ("bulk", contenders.bulk)]
    with adopted(), CpuTimes() as times:
        for number in range(rounds):
            for name, caption in ways[:: -1 if number % 2 else 1]:
                spent = []
                for folder in ("few", "many"):
                    before = times.seconds()
                    caption(folder)
                    wait_for_all(END_SECONDS)
                    spent.append(times.seconds() - before)
                each = (spent[1] - spent[0]) / pictures
                start = spent[0] - FEW * each
                found[name].append((each * 1e3, start))
                say(f"round {number + 1}, {name}: {each * 1e3:.1f} ms a picture, {start:.1f} s a start")
            if contenders.captions["served"] != contenders.captions["bulk"]:
                raise RuntimeError("the two have given other captions for the same pictures")
    return found


def table(found: dict[str, list[tuple[float, float]]], pictures: int) -> str:
    """Return the medians, the median ratio of the rounds' pairs with the least and the largest, and the machine."""
    lines = [
        "| CPU, all processes | `clients/batch.py` and a server | `bulk/caption.py` | bulk / served (all rounds) |"
    ]
    lines.append("| --- | ---: | ---: | ---: |")
    for index, (what, unit) in enumerate((("of one picture", "ms"), ("of a start and an end", "s"))):
        served, bulk = ([one[index] for one in found[name]] for name in ("served", "bulk"))
        ratios = sorted(b / a for a, b in zip(served, bulk, strict=True))
        medians = f"{statistics.median(served):.1f} {unit} | {statistics.median(bulk):.1f} {unit}"
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(f"| {what} | {medians} | {spread} |")
    described = machine.describe()
    lines.append("")
    lines.append(
        f"{len(found['bulk'])} rounds of {pictures:,} JPEGs of 480 × 360; {described['cpu']}, "
        f"{described['cores']} cores; {described['date'][:10]}."
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bulk_options(parser)
    parser.add_argument("--pictures", type=int, default=1000, metavar="N", help="of a run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown whose section `bulk-cost` is rewritten")
    options = parser.parse_args(argv)
    check_bulk_python(parser, options)
    with contextlib.ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="mplug-bulk-cost-")))
        contenders = Contenders(options.repository.absolute(), options.bulk_python, folder, options.pictures)
        found = measure(contenders, options.pictures, options.rounds)
    text = table(found, options.pictures)
    print(text)
    if options.page:
        write_section(options.page, "bulk-cost", text)
    ratio = statistics.median(b[0] / a[0] for a, b in zip(found["served"], found["bulk"], strict=True))
    return 0 if ratio < MOST else 1


if __name__ == "__main__":
    sys.exit(main())
