"""What the parts have in common: their command line, and the result file that they write."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.measure.figures import goal_in_words
from benchmarks.presets import PRESETS
from benchmarks.workspace import ROOT, Workspace, read_build_info, say, write_result

#: Parts, in the order in which they run and stand on the page.
PARTS = ("one_caption", "tasks", "decode_steps", "throughput", "soak")
WORKSPACE = ROOT / "build" / "bench"
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every part and the runner take."""
    parser.add_argument(
        "--as-avx2",
        action="store_true",
        help="compute as on a CPU with AVX2 alone, as far as the libraries can be limited to it",
    )
    parser.add_argument("--preset", choices=PRESETS, default="base", help="base, or quick: a rehearsal at tiny sizes")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of our stages (default: %(default)s)")
    parser.add_argument(
        "--workspace",
        type=Path,
        default=WORKSPACE,
        metavar="DIR",
        help="scratch: checkpoint and repository, used again (default: build/bench)",
    )


def precision_of(options: argparse.Namespace) -> str:
    """Return the precision that was asked for; limits this process and those that it starts to AVX2 where asked to."""
    if not options.as_avx2:
        return options.precision
    os.environ.update(machine.AVX2_ALONE)  # read by the libraries at their first product
    # What `auto` is with other instructions is another precision, and another repository.
    return "fp32" if options.precision == "auto" else options.precision


def main(
    name: str,
    measure: Callable[[Workspace], dict[str, Any]],
    description: str | None,
    *,
    repository_of: Callable[[Workspace], Path] = Workspace.prepare,
    checks: bool = False,
) -> int:
    """Run a part from its command line: `measure` gives `results` and `goals`, which go into the result file.

    `repository_of` makes what is measured, and gives its repository. `checks`: the goals are checks, and one
    that is missed makes the exit code 1.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--result", type=Path, metavar="FILE", help="the JSON to write (default: print it)")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="soak alone: run against this one")
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", help="the time that this part has (default: the preset's)"
    )
    parser.add_argument("--requests", type=int, metavar="N", help="soak alone: how many (default: the preset's)")
    parser.add_argument(
        "--series",
        nargs="+",
        default=(),
        metavar="NAME",
        help="throughput alone: measure these, and keep the others that FILE of --result has",
    )
    options = parser.parse_args()
    # Ended by the runner: leave through the `with`s, so that no server is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    preset = PRESETS[options.preset]
    if options.limit:
        preset = replace(preset, limits=preset.limits | {name: options.limit})
    if options.requests:
        preset = replace(preset, requests=options.requests)
    workspace = Workspace(
        options.workspace,
        preset,
        precision_of(options),
        options.repository,
        series=tuple(options.series),
        earlier=options.result if options.series else None,
    )
    document = describe(name, workspace, repository_of(workspace))
    began = time.monotonic()
    document |= measure(workspace)
    document["seconds"] = round(time.monotonic() - began, 1)
    write_result(document, options.result)
    for each in document["goals"]:
        say(goal_in_words(each))
    return 1 if checks and not all(each["reached"] for each in document["goals"]) else 0


def describe(name: str, workspace: Workspace, repository: Path) -> dict[str, Any]:
    """Return the head of a result file: what was measured, of what, on what."""
    info = read_build_info(repository)
    return {
        "part": name,
        "preset": workspace.preset.name,
        "precision": info["precision"],
        "target": info["target"],
        "settings": workspace.preset.settings(),
        "machine": machine.describe() | {"environment": machine.environment()},
    }
