"""Run the benchmarks, draw them, and fill docs/benchmarks.md: `make bench`.

    python -m benchmarks.run [PART …] [--preset base|quick] [--limit SECONDS] [--resume] [--report-only]

Each part runs in a process of its own, with a limit on its time: one_caption, tasks, decode_steps, throughput,
soak. A part that fails is reported at the end (exit code 1), and the others still run; `--resume` runs only
what has no recent result. At base size everything takes about half an hour on two cores, besides 2 minutes the
first time for the checkpoint and its repository. Measure on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import report
from benchmarks.parts.part import PARTS, add_common, precision_of
from benchmarks.presets import PRESETS
from benchmarks.workspace import ROOT, Workspace

RESULTS = ROOT / "benchmarks" / "results"
#: With --resume, a result younger than this is kept.
RECENT_HOURS = 6.0
#: Time that a part has to stop its servers once it has received SIGTERM.
GRACE_SECONDS = 20.0
#: Above this load average from other programs the numbers are not worth much.
BUSY_LOAD = 0.5


def main() -> int:
    options = _parse()
    preset = PRESETS[options.preset]
    options.precision = precision_of(options)
    scratch = options.workspace / preset.name / ("results-avx2" if options.as_avx2 else "results")
    results = options.results or (RESULTS if preset.name == "base" and not options.as_avx2 else scratch)
    page = report.PAGE if results == RESULTS else results / "benchmarks.md"  # a rehearsal leaves the page alone
    failed = [] if options.report_only else _run_parts(options, results)
    drawn = _report(results, page)
    print(f"{page}: {', '.join(drawn)}")
    for name, reason in failed:
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    add_common(parser)
    parser.add_argument(
        "--repository",
        type=Path,
        metavar="DIR",
        help="what the soak runs against (default: build/demo where it is, else a tiny random one)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="where result files and plots go (default: benchmarks/results; of a rehearsal, or as AVX2: the workspace)",
    )
    parser.add_argument(
        "--limit",
        type=_seconds,
        metavar="SECONDS",
        help="end a part that takes longer (default: the preset's own limit for each part)",
    )
    parser.add_argument("--resume", action="store_true", help=f"keep results younger than {RECENT_HOURS:.0f} h")
    parser.add_argument("--report-only", action="store_true", help="draw what has been measured, measure nothing")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    options.parts = options.parts or list(PARTS)
    return options


def _run_parts(options: argparse.Namespace, results: Path) -> list[tuple[str, str]]:
    """Run the parts; return those that failed, each with its reason."""
    preset = PRESETS[options.preset]
    began = time.monotonic()
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        print(
            f"warning: this machine is busy (load average {load:.1f}): trust ratios rather than times", file=sys.stderr
        )
    try:
        workspace = Workspace(options.workspace, preset, options.precision)
        for each in (workspace, workspace.at_precision("int8")):
            each.prepare()
    except subprocess.CalledProcessError as error:
        return [(name, f"no repository to measure: {error}") for name in options.parts]
    failed = []
    for number, name in enumerate(options.parts, 1):
        path = results / f"{name}.json"
        if options.resume and _is_recent(path, preset.name):
            print(f"[{number}/{len(options.parts)}] {name}: kept, {path} is recent", file=sys.stderr, flush=True)
            continue
        limit = options.limit or preset.limits[name]
        minutes = (time.monotonic() - began) / 60
        print(
            f"[{number}/{len(options.parts)}] {name}: at most {limit:.0f} s (after {minutes:.1f} min)",
            file=sys.stderr,
            flush=True,
        )
        command = [sys.executable, "-m", f"benchmarks.parts.{name}", "--preset", preset.name]
        command += ["--precision", options.precision, "--workspace", str(options.workspace.resolve())]
        command += ["--result", str(path.resolve()), "--limit", str(limit)]
        if name == "soak" and options.repository is not None:
            command += ["--repository", str(options.repository.resolve())]
        reason = run_limited(command, limit)
        if reason:
            failed.append((name, reason))
    return failed


def run_limited(command: list[str], limit: float) -> str:
    """Run a command for at most `limit` seconds; return the reason why it failed, or an empty string."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    reason = ""
    try:
        code = process.wait(limit)
        reason = f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        reason = f"took longer than {limit:g} s; give it more time with --limit SECONDS"
    finally:
        if process.poll() is None:  # over the limit, or this process is being ended itself
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return reason


def _seconds(text: str) -> float:
    """Parse --limit."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _is_recent(path: Path, preset: str) -> bool:
    """Return whether a part was measured at this preset less than RECENT_HOURS ago."""
    try:
        document = json.loads(path.read_text())
        age = datetime.now(UTC) - datetime.fromisoformat(document["machine"]["date"])
    except (OSError, ValueError, KeyError):
        return False
    return document["preset"] == preset and age.total_seconds() < RECENT_HOURS * 3600


def _report(results: Path, page: Path) -> list[str]:
    """Draw plots and tables of every result; return the names of the parts that have one."""
    from benchmarks import plots  # imported here: matplotlib takes a second

    documents = report.read_results(results)
    for name, document in documents.items():
        plots.draw(document, results / f"{name}.png")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report.fill(report.PAGE.read_text(), documents))
    return list(documents)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
