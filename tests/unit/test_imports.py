"""Imports run one way, as docs/architecture.md says: no circle, no arrow upwards, no room that knows too much."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    "mplug",
    "mplug_triton",
    "model_repository",
    "builders",
    "bulk",
    "demo",
    "clients",
    "deploy",
    "webpage",
    "benchmarks",
)
#: Room → the rooms that it may import.
ALLOWED = {
    "mplug": {"mplug"},
    "mplug_triton": {"mplug_triton", "mplug"},
    "model_repository": {"mplug"},
    "builders": {"builders", "mplug", "clients"},
    "bulk": {"bulk", "mplug", "clients"},
    "demo": {"demo", "builders", "mplug", "clients"},
    "clients": {"clients"},
    "deploy": {"deploy", "clients"},
    "webpage": {"webpage", "clients"},
    "benchmarks": {"benchmarks", "bulk", "clients", "deploy", "mplug"},
}
#: Layers of `mplug`, from the bottom up: each may import those before it, those of its own line, and itself.
LAYERS = (
    ("errors", "hub"),
    ("tracing",),
    ("contract", "answers"),
    ("config",),
    ("inputs",),
    ("network",),
    ("checkpoint",),
    ("runtime",),
    ("decoding",),
    ("tasks",),
    ("triton", "pipeline"),
    ("server",),
)


@cache
def modules() -> dict[str, Path]:
    """Return every module of ours by its dotted name; a package by its folder's."""
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Return the modules of ours that a module imports, within functions too."""
    found = set()
    path = modules()[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= names & set(modules()) or {origin}
    return frozenset(found & set(modules()))


def test_relative_imports_are_seen() -> None:
    assert "clients.client.answers" in imports("clients.client.calls")
    assert "clients.client.calls" in imports("clients.client.clients")
    assert "clients.client.clients" in imports("clients.client")


def test_there_is_no_circle() -> None:
    assert len(modules()) > 150
    try:
        TopologicalSorter({module: imports(module) for module in modules()}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in modules()
        if module.split(".")[0] == room
        for imported in imports(module)
        if imported.split(".")[0] not in ALLOWED[room]
    ]
    assert not wrong


def test_no_arrow_of_mplug_leads_upwards() -> None:
    height = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for module in modules():
        if not module.startswith("mplug."):
            continue
        for imported in imports(module):
            ours, theirs = module.split(".")[1], imported.split(".")[1]
            if height[theirs] > height[ours]:
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_served_cpu_processes_never_import_the_network() -> None:
    """PyTorch is loaded by the torch runtime alone, and by name."""
    allowed = {"mplug.network", "mplug.checkpoint", "mplug.runtime.torch"}
    for module in modules():
        if module.startswith(("mplug.", "model_repository.")) and not any(
            module == name or module.startswith(f"{name}.") for name in allowed
        ):
            reached = {name for name in imports(module) if name.startswith(tuple(allowed))}
            assert not reached, f"{module} imports {reached}"
