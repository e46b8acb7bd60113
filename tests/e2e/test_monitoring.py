"""Alerts, dashboards and scaling: what they ask Prometheus is PromQL, about metrics that a server exports."""

from __future__ import annotations

import json
import re
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from mplug.server.command import TritonServer

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy" / "kubernetes" / "mplug" / "files" / "alerts.yaml"
SCALING = ROOT / "deploy" / "kubernetes" / "mplug" / "templates" / "autoscaling.yaml"
KSERVE = ROOT / "deploy" / "kubernetes" / "kserve" / "mplug.yaml"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
#: What Prometheus itself adds: to every metric (`namespace` in a cluster), and as metrics.
TARGET_LABELS, OF_PROMETHEUS = {"job", "instance", "namespace"}, {"up", "ALERTS"}
#: Exported on a GPU alone: https://docs.nvidia.com/deeplearning/triton-inference-server, "Metrics".
ON_A_GPU = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}


def queries() -> Iterator[tuple[str, str]]:
    """Yield every expression, with where it stands."""
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{path.name}, {panel['title']}", target["expr"]
        for variable in dashboard["templating"]["list"]:
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            yield f"{path.name}, ${variable['name']}", f"sum by ({found[2]}) ({found[1]})"
    for index, found in enumerate(re.findall(r"query: >-\n((?: {10}.*\n)+)", SCALING.read_text())):
        yield f"scaling {index}", re.sub(r"\{\{- \$job -\}\}", 'job="a/b"', found)
    for document in yaml.safe_load_all(KSERVE.read_text()):
        for metric in document["spec"].get("predictor", {}).get("autoScaling", {}).get("metrics", []):
            yield "KServe", metric["external"]["metric"]["query"]


QUERIES = dict(queries())


def selectors(node: Any) -> Iterator[Any]:
    """Yield the metrics that a parsed expression selects."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or []:
        yield from selectors(child)


def parsed(expression: str) -> Any:
    """Parse an expression, with Grafana's variables replaced by what they may stand for."""
    return promql_parser.parse(re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", "5m")))


@pytest.fixture(scope="module")
def exported(every_task_server: TritonServer, openai_endpoint: str) -> dict[str, set[str]]:
    """Metric → its labels, of a real server and a real endpoint."""
    urllib.request.urlopen(f"http://{openai_endpoint}/v1/models", timeout=10).read()
    found: dict[str, set[str]] = defaultdict(set)
    for url in (every_task_server.metrics_url, openai_endpoint):
        with urllib.request.urlopen(f"http://{url}/metrics", timeout=10) as response:
            for line in response.read().decode().splitlines():
                if match := re.match(r"(\w+)(?:\{(.*)\})? ", line):
                    found[match[1]] |= set(re.findall(r'(\w+)="', match[2] or ""))
    return found


def test_all_places_are_read() -> None:
    assert len(DASHBOARDS) == 2 and len(RULES) >= 10
    assert len([place for place in QUERIES if place.startswith("scaling")]) == 2 and "KServe" in QUERIES


@pytest.mark.parametrize("place", QUERIES)
def test_a_query_is_about_what_a_server_exports(exported: dict[str, set[str]], place: str) -> None:
    found = list(selectors(parsed(QUERIES[place])))
    assert found
    for selector in found:
        if selector.name in OF_PROMETHEUS | ON_A_GPU:
            continue
        assert selector.name in exported, f"{selector.name} is not exported"
        unknown = {matcher.name for matcher in selector.matchers.matchers} - exported[selector.name] - TARGET_LABELS
        assert not unknown, f"{selector.name} has no label {', '.join(unknown)}"
    grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", QUERIES[place]) for label in labels.split(",")}
    known = set().union(TARGET_LABELS, {"le"}, *(exported[selector.name] for selector in found))
    assert grouped <= known


@pytest.mark.parametrize("wrong", ["sum(rate(x[5m])", "rate(mplug_decode_steps_total)", "up === 0", "sum by job (up)"])
def test_what_is_no_promql_is_found(wrong: str) -> None:
    with pytest.raises(ValueError):
        parsed(wrong)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_why_it_is_one_and_what_to_do(rule: dict[str, Any]) -> None:
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "reason", "action"} and all(annotations.values())
    assert rule["labels"]["severity"] in ("warning", "critical")
    aggregated = re.findall(r"by \(([^)]*)\)", rule["expr"])
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(annotations.values())))
    assert not aggregated or used <= {label.strip() for labels in aggregated for label in labels.split(",")}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboards_panels_do_not_overlap(path: Path) -> None:
    panels = json.loads(path.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
