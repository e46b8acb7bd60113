"""requirements-serve.txt is enough to build, to serve and to ask: nothing there imports what requirements.txt adds."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = (
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


def pinned(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)(?:\[[\w,]+\])?==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE))


def test_the_two_files_name_each_package_once() -> None:
    whole = (ROOT / "requirements.txt").read_text()
    assert "-r requirements-serve.txt" in whole
    assert not set(pinned("requirements.txt")) & set(pinned("requirements-serve.txt"))
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
    assert not set(endpoint) & set(pinned("requirements.txt"))


def test_what_builds_serves_and_asks_imports_nothing_else() -> None:
    others = {name.lower().replace("_", "-") for name in pinned("requirements.txt") | pinned("demo/requirements.txt")}
    blocked = sorted(
        module
        for module, distributions in packages_distributions().items()
        if {name.lower().replace("_", "-") for name in distributions} <= others
    )
    assert {"pytest", "nncf", "cv2", "onnxruntime"} <= set(blocked)
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    code += "".join(f"import {name}\n" for name in COMMANDS)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
