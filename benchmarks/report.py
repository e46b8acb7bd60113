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
            table = goals_table(documents.values()) + headroom(documents) if documents else None
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
    return (
        f"*{machine['date'][:10]}, {machine['cpu']}{features}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB, Python {machine['python']}, {versions_shown}; "
        f"our stages in {document['precision']}, preset `{document['preset']}`, took {document['seconds']:.0f} s.*"
    )


def goals_table(documents: Iterable[dict[str, Any]]) -> str:
    """Return a table of every goal beside what was measured."""
    rows = [
        (goal["goal"], goal["target"], f"{goal['measured']:g}", "yes" if goal["reached"] else "**no**")
        for document in documents
        for goal in document["goals"]
    ]
    return table(("goal", "target", "measured", "reached"), rows)


def headroom(documents: dict[str, dict[str, Any]]) -> str:
    """Return how far the goals and we are from this machine's floor, if that was measured too."""
    lines = []
    if not {"one_caption", "decode_steps"} <= set(documents):
        return ""
    floor = documents["decode_steps"]["results"]["stages"]["whole"]["floor"]
    contenders = documents["one_caption"]["results"]["contenders"]
    ours, blip = contenders["triton"]["median"], contenders["blip"]["median"]
    lines.append(
        f"One caption cannot take less than {_seconds(floor)} here in the precision of our stages ({blip / floor:.1f}× "
        f"faster than BLIP); it takes {_seconds(ours)}, {ours / floor:.2f}× that floor. 2.5× BLIP is "
        f"{_seconds(blip / 2.5)}."
    )
    rate = captions_per_second_at_most(documents["decode_steps"])
    series = documents.get("throughput", {}).get("results", {}).get("series", {})
    by_name = {name: next((each for each in found if each["clients"] == 16), None) for name, found in series.items()}
    if rate and by_name.get("ours") and by_name.get("litserve_blip"):
        reached, baseline = (by_name[name]["captions_per_second"] for name in ("ours", "litserve_blip"))
        lines.append(
            f"The same floors allow {rate:.2f} captions/s with 16 in the decoder ({rate / baseline:.1f}× LitServe's at "
            f"16 clients); {reached:.2f} are reached, {reached / rate:.0%} of that. 5× LitServe's are "
            f"{5 * baseline:.2f}."
        )
    return "".join(f"\n\n{line}" for line in lines)


def captions_per_second_at_most(steps: dict[str, Any]) -> float | None:
    """Return the captions per second that the floors allow, with 16 in every step; None if 16 were not measured."""
    results, lengths = steps["results"], steps["settings"]["lengths"]
    full = [each for each in results["steps"] if each["batch"] == 16]
    if not full:
        return None
    step = max(full, key=lambda each: each["position"])
    encoders = sum(results["stages"][stage]["floor"] for stage in ("vision_encoder", "prefill"))
    return 1 / (encoders + sum(lengths) / len(lengths) * step["floor"] / 16)


def one_caption(document: dict[str, Any]) -> str:
    rows = [
        (
            each["title"],
            _seconds(each["median"]),
            _seconds(each["best"]),
            _seconds(each["worst"]),
            f"{each['times_ours']:.2f}×",
            each["count"],
        )
        for each in document["results"]["contenders"].values()
    ]
    overhead = document["results"]["triton_overhead"]
    return (
        table(("one caption, 5 beams, 20 tokens", "median", "best", "worst", "of ours", "rounds"), rows)
        + f"\n\nOverhead of Triton and BLS, median over the rounds: {overhead:+.1%}."
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
    bandwidth = max(limits[kind] for kind in ("read_bandwidth", "copy_bandwidth", "triad_bandwidth"))
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
        f"{first}\n\n{second}\n\nMeasured limits: {bandwidth / 1e9:.1f} GB/s (read {giga['read_bandwidth']:.1f}, copy "
        f"{giga['copy_bandwidth']:.1f}, triad {giga['triad_bandwidth']:.1f}); matrix products "
        f"{giga['matmul_fp32']:.0f} GFLOP/s in fp32, {giga['matmul_bf16']:.0f} in bf16."
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
