"""requirements-serve.txt is enough to build, to serve and to ask: nothing there imports what requirements.txt adds."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mplug_triton.commands import COMMANDS

ROOT = Path(__file__).parents[2]
PROGRAMS = (
    "builders.build",
    "mplug.server",
    "clients.caption",
    "clients.retrieve",
    "mplug.triton.context",
    "mplug.tasks.caption",
    "mplug.tasks.vqa",
    "mplug.tasks.retrieval",
    "mplug.tasks.ground",
    "mplug.tasks.judgement",
    "mplug.runtime.openvino",
    "mplug.runtime.torch",
)


def own_pins(name: str) -> dict[str, str]:
    """The pins that stand in a file itself."""
    return dict(re.findall(r"^([\w-]+)(?:\[[\w,]+\])?==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE))


def pinned(name: str) -> dict[str, str]:
    """The pins of a file and of those that it includes."""
    included = re.findall(r"^-r (\S+)", (ROOT / name).read_text(), re.MULTILINE)
    return own_pins(name) | {package: pin for other in included for package, pin in pinned(other).items()}


def test_each_package_is_pinned_once() -> None:
    whole = (ROOT / "requirements.txt").read_text()
    assert "-r requirements-serve.txt" in whole
    parts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "requirements").glob("*.txt"))
    assert len(parts) == 5
    named = [package for name in ("requirements.txt", *parts) for package in own_pins(name)]
    assert sorted(set(named)) == sorted(named)
    assert {"torch", "openvino", "nvidia-pytriton", "tritonclient"} <= set(pinned("requirements-serve.txt"))
    assert {"pytest", "nncf", "locust"} <= set(pinned("requirements.txt"))


def test_the_page_has_the_same_pins() -> None:
    """Its Pillow, too, although Gradio asks for an older one: that is what overrides.txt is for."""
    page, overrides = pinned("webpage/requirements.txt"), pinned("webpage/overrides.txt")
    serving = pinned("requirements-serve.txt")
    assert {
        name: version for name, version in (page | overrides).items() if serving.get(name, version) != version
    } == {}
    assert {"numpy", "tritonclient"} <= set(page) and set(overrides) == {"pillow"} and "pillow" not in page


def test_the_endpoint_has_the_same_pins() -> None:
    endpoint, serving = pinned("deploy/openai/requirements.txt"), pinned("requirements-serve.txt")
    assert {"numpy", "pillow", "tritonclient"} <= set(endpoint) & set(serving)
    assert all(serving.get(name, version) == version for name, version in endpoint.items())
    assert not set(endpoint) & set(own_pins("requirements.txt"))


def test_bulk_work_has_the_same_pins() -> None:
    """But for NumPy, because of which it has an environment of its own."""
    bulk, serving = pinned("bulk/requirements.txt"), pinned("requirements-serve.txt")
    assert {name for name, version in bulk.items() if serving.get(name, version) != version} == {"numpy"}
    assert {"openvino", "tokenizers", "pillow", "av"} <= set(bulk) & set(serving)
    assert bulk["faiss-cpu"] == pinned("requirements.txt")["faiss-cpu"]


def test_what_goes_together_with_bulk_work_is_said() -> None:
    """docs/install.md names the extras that hold no other NumPy."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = document["tool"]["hatch"]["metadata"]["hooks"]["requirements_txt"]["optional-dependencies"]
    pins = {name: {key: pin for file in files for key, pin in pinned(file).items()} for name, files in extras.items()}
    bulk = pins.pop("bulk")
    together = [name for name, other in pins.items() if all(bulk.get(key, pin) == pin for key, pin in other.items())]
    said = re.search(r"`bulk` goes together with ([^:]+):", (ROOT / "docs" / "install.md").read_text())[1]
    assert together == re.findall(r"`(\w+)`", said)


def package_ranges() -> dict[str, SpecifierSet]:
    """What the package asks for without an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {(found := Requirement(line)).name: found.specifier for line in project["dependencies"]}


def test_the_package_takes_the_pins_and_is_tested_with_other_versions() -> None:
    ranges, pins, others = package_ranges(), pinned("requirements-serve.txt"), pinned("tests/client-requirements.txt")
    assert set(ranges) == set(others) <= set(pins)
    for name, versions in ranges.items():
        assert pins[name] in versions and others[name] in versions and pins[name] != others[name]


def test_every_extra_is_a_requirements_file() -> None:
    """The plugin reads pins and no `-r`; a file that includes others would lose them."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = document["tool"]["hatch"]["metadata"]["hooks"]["requirements_txt"]["optional-dependencies"]
    assert {"serve", "build", "train", "page"} <= set(extras)
    for name in {name for names in extras.values() for name in names}:
        assert pinned(name) == own_pins(name)
    assert {command.extra for command in COMMANDS.values() if command.extra} <= set(extras)


def test_what_builds_serves_and_asks_imports_nothing_else() -> None:
    others = {name.lower().replace("_", "-") for name in pinned("requirements.txt")}
    others -= {name.lower().replace("_", "-") for name in pinned("requirements-serve.txt")}
    blocked = sorted(
        module
        for module, distributions in packages_distributions().items()
        if {name.lower().replace("_", "-") for name in distributions} <= others
    )
    assert {"pytest", "nncf", "cv2", "onnxruntime"} <= set(blocked)
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    code += "".join(f"import {name}\n" for name in PROGRAMS)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
