"""Bulk work under kills: 10,000 pictures, and a worker, the driver and all of Ray killed at random moments.

    make bulk-soak
    python -m benchmarks.parts.bulk_kills --repository build/demo [--rows 10000] [--seed N] [--page docs/bulk.md]

The command is started again, as it stands, whenever a kill has ended it. In the end every input must have one row, with
the caption that `mplug.pipeline` gives, no file may be torn, and no process may be left. The exit code is 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.measure import machine
from benchmarks.measure.bulk_environment import add_bulk_options, check_bulk_python, rows_of
from benchmarks.measure.descendants import adopted, descendants, wait_for_all
from benchmarks.measure.pictures import picture
from benchmarks.page import write_section
from benchmarks.workspace import ROOT, say
from mplug.pipeline import Pipeline

DRAWN = 100  # different pictures; the corpus has each many times
ROWS_PER_FILE = 100
#: Kills are spread over this part of the corpus, so that each meets a run at work.
FIRST, LAST = 0.05, 0.9
LATEST_SECONDS = 2.0  # between a file and the kill
END_SECONDS = 180.0  # for a command whose Ray is gone


@dataclass
class Kill:
    """One kill, and what came of it."""

    target: str  #: a worker, the driver, all of Ray
    at: int  #: rows that are safe, from which on it is due
    rows: int = 0  #: that were safe when it came
    seconds: float = 0.0  #: that the command went on
    end: str = ""  #: how it ended, if it did


class Soak:
    """A corpus, the command that captions it, and what is killed on the way."""

    def __init__(self, repository: Path, bulk_python: Path, folder: Path, rows: int, chance: random.Random) -> None:
        self._python, self._rows, self._chance = bulk_python, rows, chance
        self._corpus, self._output = folder / "photos", folder / "captions"
        self._pictures = [picture(seed) for seed in range(DRAWN)]
        (folder / "drawn").mkdir()
        self._corpus.mkdir()
        for seed, data in enumerate(self._pictures):
            (folder / "drawn" / f"{seed}.jpg").write_bytes(data)
        for number in range(rows):
            (self._corpus / f"{number:06}.jpg").symlink_to(folder / "drawn" / f"{number % DRAWN}.jpg")
        self._command = [bulk_python, ROOT / "bulk" / "caption.py", self._corpus, self._output]
        self._command += ["--repository", repository, "--num-beams", "2", "--rows-per-file", str(ROWS_PER_FILE)]
        with Pipeline.open(repository) as mplug:
            self._captions = [found[0].text for found in mplug.map("caption", self._pictures, num_beams=2)]

    def run(self, kills: Sequence[Kill]) -> int:
        """Run the command until it has finished; return how often it was started. Raises RuntimeError."""
        process, starts = self._start(), 1
        for kill in kills:
            while self._safe() < kill.at:
                if process.poll() is not None:
                    raise RuntimeError(f"the command has ended by itself: {process.communicate()[1].strip()}")
                time.sleep(0.05)
            time.sleep(self._chance.uniform(0, LATEST_SECONDS))
            while not (victims := self._victims(kill.target, process)):  # a worker, of a command that starts just now
                if process.poll() is not None:
                    raise RuntimeError("the command was done before a worker could be killed: give more --rows")
                time.sleep(0.05)
            kill.rows = self._safe()
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
            began = time.monotonic()
            if kill.target == "a worker":
                kill.end = "goes on"
            else:
                _, errors = process.communicate(timeout=END_SECONDS)
                kill.seconds = time.monotonic() - began
                kill.end = f"exit code {process.returncode}"
                if not errors.strip():
                    raise RuntimeError(f"{kill.target} was killed, and the command has ended without a line")
                say(f"{kill.target}: {kill.end} after {kill.seconds:.1f} s: {errors.strip()[-300:]}")
                process, starts = self._start(), starts + 1
            say(f"{kill.target} killed at {kill.rows} rows")
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the last run has failed: {errors.strip()}")
        return starts

    def faults(self) -> dict[str, int]:
        """Return what is wrong with the output, by kind."""
        rows = rows_of(self._python, self._output, "input", "caption", "error")
        count = Counter(name for name, _, _ in rows)
        wanted = {f"{number:06}.jpg": self._captions[number % DRAWN] for number in range(self._rows)}
        return {
            "rows": len(rows),
            "twice": sum(number > 1 for number in count.values()),
            "missing": len(wanted.keys() - count.keys()),
            "with an error": sum(error is not None for _, _, error in rows),
            "with another caption": sum(caption != wanted.get(name) for name, caption, _ in rows),
            "torn files": len(list(self._output.glob(".*.parquet.*"))),
        }

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(map(str, self._command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def _safe(self) -> int:
        """Return the rows in files, roughly: all but a run's last files hold about as many."""
        return ROWS_PER_FILE * len(list(self._output.glob("*.parquet")))

    def _victims(self, target: str, process: subprocess.Popen[str]) -> list[psutil.Process]:
        driver = psutil.Process(process.pid)
        if target == "the driver":
            return [driver]
        ray, workers = [], []
        for each in descendants():
            with contextlib.suppress(psutil.Error):  # it ends just now, or has ended and waits for us
                command = " ".join(each.cmdline())
                # Not the driver, nor the process that says a last word for it.
                if each.pid != driver.pid and ("/ray/" in command or command.startswith("ray::")):
                    ray.append(each)
                if "MapWorker" in command:
                    workers.append(each)
        if target == "all of Ray":
            return ray
        return [self._chance.choice(workers)] if workers else []


def table(kills: Sequence[Kill], faults: dict[str, int], starts: int, seed: int) -> str:
    """Return what was killed when, and what the output held in the end, as Markdown."""
    lines = ["| killed | at about row | the command |", "| --- | ---: | --- |"]
    for kill in kills:
        how = kill.end if kill.end == "goes on" else f"ended after {kill.seconds:.1f} s, {kill.end}; started again"
        lines.append(f"| {kill.target} | {kill.rows:,} | {how} |")
    described = machine.describe()
    held = ", ".join(f"{number:,} {kind}" for kind, number in faults.items())
    lines += ["", f"After {starts} starts: {held}. Seed {seed}; {described['cpu']}, {described['date'][:10]}."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 when a row is missing, wrong, or there twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bulk_options(parser)
    parser.add_argument("--rows", type=int, default=10_000, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the moments and their order (default: another each time)"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown whose section `bulk-kills` is rewritten")
    options = parser.parse_args(argv)
    check_bulk_python(parser, options)
    seed = secrets.randbelow(1 << 20) if options.seed is None else options.seed
    chance = random.Random(seed)
    targets = ["a worker", "the driver", "all of Ray"]
    chance.shuffle(targets)
    moments = sorted(int(chance.uniform(FIRST, LAST) * options.rows) for _ in targets)
    kills = [Kill(*each) for each in zip(targets, moments, strict=True)]
    try:
        with tempfile.TemporaryDirectory(prefix="mplug-bulk-kills-") as folder, adopted():
            soak = Soak(options.repository.absolute(), options.bulk_python, Path(folder), options.rows, chance)
            starts = soak.run(kills)
            faults = soak.faults()
            wait_for_all(END_SECONDS)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = table(kills, faults, starts, seed)
    print(text)
    if options.page:
        write_section(options.page, "bulk-kills", text)
    rows = faults.pop("rows")
    return 0 if rows == options.rows and not any(faults.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
