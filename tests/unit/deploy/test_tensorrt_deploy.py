"""The container's files: images that are pinned, paths that exist, a dashboard of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mplug.decoding.metrics import COUNTERS, GAUGES
from mplug.server.command import METRICS_PORT
from tests.unit.installed_packages import modules_not_brought_by

ROOT = Path(__file__).parents[3]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "mplug.json"
#: Metrics of Triton's that the dashboard may use; names from Triton's metrics documentation.
TRITON = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_cache_num_hits_per_model",
    "nv_cache_num_misses_per_model",
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
    "nv_cpu_utilization",
}


def test_the_dashboard_shows_every_metric_of_the_decoder_and_no_other():
    dashboard = json.loads(DASHBOARD.read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", []))
    shown = set(re.findall(r"\b(?:mplug|nv)_\w+", queries))
    ours = {name for name, _ in (*COUNTERS.values(), *GAUGES.values())}
    assert ours <= shown <= ours | TRITON
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_compose_mounts_what_exists_and_pins_its_images():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), volume
            assert source.startswith((".", "$")) or source in compose["volumes"], volume


def test_prometheus_asks_the_server_where_it_answers():
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    targets = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == [f"triton:{METRICS_PORT}"]
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    panels = json.loads(DASHBOARD.read_text())["panels"]
    used = {panel["datasource"]["uid"] for panel in panels if "datasource" in panel}
    assert used == {source["datasources"][0]["uid"]}


def test_the_dockerfile_copies_what_exists_and_one_release_is_meant_throughout():
    text = (ROOT / "Dockerfile").read_text()
    release = re.search(r"^ARG TRITON_RELEASE=(\d\d\.\d\d)$", text, re.MULTILINE)[1]
    assert release in (ROOT / "requirements-gpu.txt").read_text() and release in (ROOT / "docs" / "gpu.md").read_text()
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements-gpu.txt").read_text(), re.MULTILINE))
    files = [*(ROOT / "requirements").glob("*.txt"), ROOT / "requirements.txt"]
    whole = "\n".join(path.read_text() for path in files)
    shared = dict(re.findall(r"^([\w-]+)==([\w.]+)", whole, re.MULTILINE))
    assert pinned["tensorrt-rtx-cu13"] == shared["tensorrt-rtx-cu13"]
    assert pinned["cuda-python"] == shared["cuda-bindings"]  # which it brings
    for name in "|".join(re.findall(r"\^\(([\w|]+)\)==", text)).split("|"):
        assert name in shared, name


#: What runs in the two images of the GPU path, and the lists of Dockerfile that it finds there.
IMAGES = {
    "serve": (1, ["mplug.server.command", "mplug.tasks.table", "mplug.decoding.service", "mplug.runtime.gpu.tensorrt"]),
    "build": (2, ["builders.build", "builders.compile.tensorrt_stages", "mplug.runtime.torch", "mplug.server.command"]),
}


@pytest.mark.parametrize("image", IMAGES)
def test_what_an_image_installs_is_enough_for_what_runs_in_it(image):
    """The lists are short, so that pip meets few of the system's own packages; what is left out is not missed.

    torch asks for a setuptools that is newer than the image's: pip puts it in front of the system's packages.
    """
    count, programs = IMAGES[image]
    text = (ROOT / "Dockerfile").read_text()
    lists = re.findall(r"\^\(([\w|]+)\)==", text)[:count]
    files = [ROOT / "requirements-gpu.txt", ROOT / "deploy" / "tracing" / "requirements.txt"]
    names = [name for each in lists for name in each.split("|")]
    names += [name for file in files for name in re.findall(r"^([\w-]+)==", file.read_text(), re.MULTILINE)]
    blocked = modules_not_brought_by(names)
    assert {"locust", "selenium", "nncf", "tritonclient"} <= set(blocked)
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    code += "".join(f"import {name}\n" for name in programs)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installs = re.findall(r"python3 -m pip install (.*)", text)
    assert len(installs) == 2 and all(line.startswith("--ignore-installed ") for line in installs)
