"""Run the benchmarks, draw them, and fill docs/benchmarks.md: `make bench`.

    python -m benchmarks.run [PART …] [--preset base|quick] [--resume] [--report-only]

Parts, each in a process of its own, with a limit on its time: one_caption, decode_steps, throughput, soak. A
part that fails is told at the end (exit code 1), and the others run all the same; `--resume` runs only what
has no recent result. At base size all of it takes about 12 minutes on two cores, besides 2 minutes the first
time for the checkpoint and its repository. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import report
from benchmarks.parts.part import PARTS, add_common
from benchmarks.presets import PRESETS
from benchmarks.workspace import ROOT, Workspace

RESULTS = ROOT / "benchmarks" / "results"
#: With --resume, a result younger than this is kept.
RECENT_HOURS = 6.0
#: A part that is told to end gets so long to stop its servers.
GRACE_SECONDS = 20.0
#: Above this load of others the numbers are not worth much.
BUSY_LOAD = 0.5


def main() -> int:
    options = _parse()
    preset = PRESETS[options.preset]
    scratch = options.workspace / preset.name / "results"
    results = options.results or (RESULTS if preset.name == "base" else scratch)
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
        help="where result files and plots go (default: benchmarks/results; quick: the workspace)",
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
    """Run the parts; the failed ones, each with its reason."""
    preset = PRESETS[options.preset]
    began = time.monotonic()
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        print(f"warning: others keep this machine busy (load {load:.1f}): expect ratios, not times", file=sys.stderr)
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
        limit = preset.limits[name]
        minutes = (time.monotonic() - began) / 60
        print(
            f"[{number}/{len(options.parts)}] {name}: at most {limit:.0f} s (after {minutes:.1f} min)",
            file=sys.stderr,
            flush=True,
        )
        command = [sys.executable, "-m", f"benchmarks.parts.{name}", "--preset", preset.name]
        command += ["--precision", options.precision, "--workspace", str(options.workspace.resolve())]
        command += ["--result", str(path.resolve())]
        if name == "soak" and options.repository is not None:
            command += ["--repository", str(options.repository.resolve())]
        reason = run_limited(command, limit)
        if reason:
            failed.append((name, reason))
    return failed


def run_limited(command: list[str], limit: float) -> str:
    """Run a command for at most `limit` seconds; the reason why it failed, or nothing."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    reason = ""
    try:
        code = process.wait(limit)
        reason = f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        reason = f"took more than {limit:.0f} s"
    finally:
        if process.poll() is None:  # too late, or we are being ended ourselves
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return reason


def _is_recent(path: Path, preset: str) -> bool:
    """Whether a part has been measured, at this size and not long ago."""
    try:
        document = json.loads(path.read_text())
        age = datetime.now(UTC) - datetime.fromisoformat(document["machine"]["date"])
    except (OSError, ValueError, KeyError):
        return False
    return document["preset"] == preset and age.total_seconds() < RECENT_HOURS * 3600


def _report(results: Path, page: Path) -> list[str]:
    """Plots and tables of every result there is; the names of the parts that have one."""
    from benchmarks import plots  # on use: matplotlib takes a second

    documents = report.read_results(results)
    for name, document in documents.items():
        plots.draw(document, results / f"{name}.png")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report.fill(report.PAGE.read_text(), documents))
    return list(documents)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
