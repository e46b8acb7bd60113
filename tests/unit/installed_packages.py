"""Which modules a machine lacks that has only some packages installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement


def modules_not_brought_by(names: Iterable[str]) -> list[str]:
    """Return the modules that are installed here, without those of these packages and of all that they ask for."""
    found: set[str] = set()
    left = {canonical(name) for name in names}
    while left:
        name = left.pop()
        found.add(name)
        asked = [Requirement(line) for line in _requires(name)]
        wanted = {canonical(each.name) for each in asked if not each.marker or each.marker.evaluate({"extra": ""})}
        left |= wanted - found
    return sorted(
        module
        for module, distributions in packages_distributions().items()
        if not {canonical(name) for name in distributions} & found
    )


def canonical(name: str) -> str:
    """Return a package's name as packages are compared by."""
    return name.lower().replace("_", "-")


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:  # what a GPU needs is not installed here
        return []
