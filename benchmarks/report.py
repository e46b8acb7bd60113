"""Result files → the tables of docs/benchmarks.md, between its markers.

The text of the page is written by hand; what stands between `<!-- generated: NAME -->` and `<!-- end -->` is
replaced. A part that has no result file keeps what stands there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.figures import goal_in_words
from benchmarks.parts.part import PARTS
from benchmarks.workspace import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
_SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

#: Packages whose versions stand below each table; all of them are in the result files.
PACKAGES_SHOWN = ("openvino", "torch", "transformers", "litserve")

#: Stages of a caption, as the page calls them.
STAGE_TITLES = {
    "parse": "decode and resize the picture",
    "vision_encoder": "vision encoder",
    "prefill": "decoder prefill",
    "step": "20 decoder steps",
    "rest": "search, queues, copies",
    "whole": "whole caption",
}


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the existing result files, by part."""
    paths = {name: folder / f"{name}.json" for name in PARTS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def fill(page: str, documents: dict[str, dict[str, Any]]) -> str:
    """Return the page with its tables filled in again. Raises ValueError for a marker that nothing fills."""

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        if name == "goals":
            table = goals_table(documents.values()) if documents else None
        elif name in TABLES:
            table = TABLES[name](documents[name]) + "\n\n" + provenance(documents[name]) if name in documents else None
        else:
            raise ValueError(f"the page asks for {name!r}; known: goals, {', '.join(TABLES)}")
        return match[0] if table is None else f"{match[1]}{table}\n{match[3]}"

    return _SECTION.sub(replace, page)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table; columns after the first are aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def provenance(document: dict[str, Any]) -> str:
    """Return one line: when, on what machine, of which stages."""
    machine = document["machine"]
    versions = machine["versions"]
    versions_shown = ", ".join(f"{name} {versions[name]}" for name in PACKAGES_SHOWN if name in versions)
    features = f" ({', '.join(machine['cpu_features'])})" if machine["cpu_features"] else ""
    emulated = f", products limited to {machine['emulated']}" if machine.get("emulated") else ""
    return (
        f"*{machine['date'][:10]}, {machine['cpu']}{features}{emulated}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB, Python {machine['python']}, {versions_shown}; "
        f"our stages in {document['precision']}, preset `{document['preset']}`, took {document['seconds']:.0f} s.*"
    )


def goals_table(documents: Iterable[dict[str, Any]]) -> str:
    """Return a table of every goal beside what was measured and what the floors allow, and a list of those missed."""
    goals = [goal for document in documents for goal in document["goals"]]
    rows = [
        (
            goal["goal"],
            goal["target"],
            _measured(goal),
            f"{goal['allows']:.3g}" if "allows" in goal else "",
            "yes" if goal["reached"] else "**no**",
        )
        for goal in goals
    ]
    shown = table(("goal", "target", "measured (95 % interval)", "floor allows", "reached"), rows)
    missed = [f"- {goal_in_words(goal)}." for goal in goals if not goal["reached"]]
    return "\n".join([shown, *(["", "Missed here:", "", *missed] if missed else [])])


def _measured(goal: dict[str, Any]) -> str:
    interval = " ({:.3g} to {:.3g})".format(*goal["interval"]) if "interval" in goal else ""
    return f"{goal['measured']:g}{interval}"


def one_caption(document: dict[str, Any]) -> str:
    rows = [
        (
            each["title"],
            _seconds(each["median"]),
            _seconds(each["best"]),
            _seconds(each["worst"]),
            f"{each['times_ours']:.2f}×",
            _seconds(each["floor"]) if "floor" in each else "",
            each["count"],
        )
        for each in document["results"]["contenders"].values()
    ]
    overhead = document["results"]["triton_overhead"]
    low, high = overhead["interval"]
    return (
        table(("one caption, 5 beams, 20 tokens", "median", "best", "worst", "of ours", "floor", "rounds"), rows)
        + f"\n\nOverhead of Triton and BLS, median over {overhead['rounds']} rounds: {overhead['percent']:+.1f} % "
        f"(95 % interval {low:+.1f} to {high:+.1f})."
    )


def tasks(document: dict[str, Any]) -> str:
    results = document["results"]
    rows = [
        (
            each["title"],
            _seconds(each["ours"]["median"]),
            _seconds(each["pytorch"]["median"]),
            f"{each['times_faster']:.2f}×",
            each["ours"]["count"],
        )
        for each in results["tasks"].values()
    ]
    further, match = results["further"], results["match"]
    ran = {stage.replace("_", " "): count for stage, count in further["runs"].items()}
    return (
        table(("one request, median", "ours, through Triton", "PyTorch", "faster", "rounds"), rows)
        + f"\n\n{further['title'].capitalize()}: {_seconds(further['further']['median'])} after "
        f"{_seconds(further['first']['median'])}; for {further['questions']} of them "
        + ", ".join(f"the {stage} ran {count} times" for stage, count in ran.items())
        + f". {match['texts']} texts in one `match`: the fusion encoder ran {match['runs']['fusion_encoder']} times; "
        f"asked one by one they take {match['times_faster']:.1f} times as long."
    )


def decode_steps(document: dict[str, Any]) -> str:
    results = document["results"]
    limits, stages = results["limits"], results["stages"]
    first = table(
        ("stage of one caption", "time", "share", "floor", "bound by", "× floor"),
        [
            (
                STAGE_TITLES[name],
                _seconds(stage["seconds"]),
                f"{stage['seconds'] / stages['whole']['seconds']:.0%}",
                _seconds(stage["floor"]) if "floor" in stage else "",
                stage.get("bound_by", ""),
                f"{stage['times_floor']:.1f}" if "times_floor" in stage else "",
            )
            for name, stage in stages.items()
        ],
    )
    second = table(
        ("batch", "position", "a step", "per sequence", "floor", "bound by", "× floor"),
        [
            (
                step["batch"],
                step["position"],
                _seconds(step["median"]),
                _seconds(step["per_sequence"]),
                _seconds(step["floor"]),
                step["bound_by"],
                f"{step['times_floor']:.1f}",
            )
            for step in results["steps"]
        ],
    )
    giga = {name: value / 1e9 for name, value in limits.items()}
    return (
        f"{first}\n\n{second}\n\nMeasured limits: a matrix-vector product reads {giga['read_bandwidth']:.1f} GB/s, "
        f"a copy moves {giga['copy_bandwidth']:.1f}, a triad {giga['triad_bandwidth']:.1f}; matrix products "
        f"{giga['matmul_fp32']:.0f} GFLOP/s in fp32, {giga['matmul_bf16']:.0f} in bf16, {giga['matmul_int8']:.0f} G a "
        "second in int8."
    )


def throughput(document: dict[str, Any]) -> str:
    results = document["results"]
    rows = []
    for name, series in results["series"].items():
        for each in series:
            batch = each.get("mean_decode_batch")
            rows.append(
                (
                    results["titles"][name],
                    each["clients"],
                    f"{each['captions_per_second']:.2f}",
                    f"{each['tokens_per_second']:.0f}",
                    _seconds(each["latency_p50"]),
                    _seconds(each["latency_p95"]),
                    "" if batch is None else f"{batch:.1f}",
                    each["captions"],
                )
            )
    header = ("", "clients", "captions/s", "tokens/s", "p50", "p95", "mean decode batch", "captions in window")
    failed = "".join(f"\n\nFailed: {error}" for error in results["errors"])
    return table(header, rows) + failed


def soak(document: dict[str, Any]) -> str:
    results = document["results"]
    statuses = sorted({status for kind in results["outcomes"].values() for status in kind})
    rows = [
        (kind, *(found.get(status, 0) for status in statuses)) for kind, found in sorted(results["outcomes"].items())
    ]
    memory = [sample["resident_mib"] for sample in results["samples"]]
    return (
        table(("kind of request", *statuses), rows)
        + f"\n\n{results['requests']} requests to `{document['repository']}` in {results['seconds']:.0f} s "
        f"({results['requests_per_second']:.0f} a second), mean decode batch {results['mean_decode_batch']}; "
        f"median latency of the good ones {_seconds(results['latency_of_good']['median'])}, "
        f"p95 {_seconds(results['latency_of_good']['p95'])}. "
        f"Resident memory of all server processes {memory[0]:.0f} MiB at the start, {memory[-1]:.0f} MiB at the end, "
        f"{results['memory_growth']:+.1%} in the second half."
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "one_caption": one_caption,
    "decode_steps": decode_steps,
    "throughput": throughput,
    "soak": soak,
    "tasks": tasks,
}


def _seconds(seconds: float) -> str:
    """Format seconds with three digits, as milliseconds below one second."""
    if seconds < 1:
        milliseconds = seconds * 1000
        return f"{milliseconds:.{max(0, 3 - len(str(int(milliseconds))))}f} ms"
    return f"{seconds:.2f} s"
