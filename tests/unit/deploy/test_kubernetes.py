"""The Helm chart and KServe's manifests, rendered and held against schemas: no cluster is asked."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.gateway.configuration import Server
from deploy.gateway.run import _parse as parse_gateway
from deploy.gateway.run import read_keys
from deploy.kubernetes.check import faults, manifests
from mplug.server.command import GRPC_PORT, HEALTH_PORT, HTTP_PORT, METRICS_PORT
from mplug.server.command import _parse as parse_server
from mplug.server.health import LIVE_PATH, READY_PATH

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "kubernetes" / "mplug"
KSERVE = ROOT / "deploy" / "kubernetes" / "kserve" / "mplug.yaml"
KEY = "a-key-of-twenty-characters"
BUILT = {"repository": {"source": "build"}}
#: What a user may set, each with what differs from the defaults.
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "imagePullSecrets": [{"name": "registry"}],
        "repository": {"source": "image", "image": "registry.example/mplug-repository:1"},
        "server": {
            "threads": 3,
            "runtimeClassName": "nvidia",
            "nodeSelector": {"gpu": "l4"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "drainSeconds": 90,
            "traceEndpoint": "http://collector.monitoring.svc:4318",
        },
        "gateway": {"apiKeys": {"shop": KEY, "lab": f"{KEY}-2"}, "tlsSecret": "certificate"},
        "routes": {"enabled": True, "hostnames": ["mplug.example"]},
        "podMonitor": {"labels": {"release": "prometheus"}},
        "alerts": {"labels": {"release": "prometheus"}},
        "disruption": {"maxUnavailable": "25%"},
    },
    "nothing optional": {
        "autoscaling": {"enabled": False},
        "podMonitor": {"enabled": False},
        "alerts": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "gateway": {"existingSecret": "keys-of-ours"},
    },
    "built": BUILT,
}


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Helm: `make test` installs it into the environment; HELM names another."""
    beside = Path(sys.prefix) / "helm" / "helm"
    found = os.environ.get("HELM") or (str(beside) if beside.exists() else shutil.which("helm"))
    assert found, f"no Helm: python deploy/kubernetes/install_helm.py {beside}"
    return subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def rendered(folder: Path, values: dict[str, Any], *options: str | Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the chart's objects by kind and name."""
    path = folder / "values.json"
    path.write_text(json.dumps(values))
    done = helm("template", "m", CHART, "--namespace", "vision", *options, "--values", path)
    assert done.returncode == 0, done.stderr
    return {(one["kind"], one["metadata"]["name"]): one for one in manifests(done.stdout)}


def pod(objects: dict[tuple[str, str], dict[str, Any]], name: str) -> dict[str, Any]:
    return objects["Deployment", name]["spec"]["template"]["spec"]


@pytest.mark.parametrize("options", [[], ["--values", CHART / "values-cpu.yaml"]], ids=["gpu", "cpu"])
def test_the_linter_finds_nothing(options: list) -> None:
    done = helm("lint", "--strict", CHART, *options)
    assert done.returncode == 0 and "WARNING" not in done.stdout, done.stdout


@pytest.mark.parametrize("options", [[], ["--values", CHART / "values-cpu.yaml"]], ids=["gpu", "cpu"])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_object_is_as_its_schema_says(tmp_path: Path, values: dict[str, Any], options: list) -> None:
    objects = rendered(tmp_path, values, *options)
    assert {name: found for name, one in objects.items() if (found := faults(one))} == {}
    kinds = {kind for kind, _ in objects}
    optional = {"ScaledObject", "PodMonitor", "PrometheusRule", "NetworkPolicy"}
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= kinds
    assert kinds & optional == (set() if "alerts" in values and "enabled" in values["alerts"] else optional)
    assert kinds & {"GRPCRoute", "HTTPRoute"} == ({"GRPCRoute", "HTTPRoute"} if "routes" in values else set())
    limits = pod(objects, "m-server")["containers"][0]["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits) == (not options)


def test_kserve_is_as_its_schemas_say() -> None:
    runtime, service = manifests(KSERVE.read_text())
    assert faults(runtime) == faults(service) == []
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    container = runtime["spec"]["containers"][0]
    options = parse_server(container["args"])
    assert container["ports"][0]["containerPort"] == options.grpc_port
    assert container["readinessProbe"]["httpGet"] == {"path": READY_PATH, "port": HEALTH_PORT}
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"] + options.lame_duck + options.drain_seconds
    assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] == wait + 15


#: Kind, where in the object, and the key that gets a letter too many.
TYPOS = (
    ("Deployment", ("spec", "template", "spec"), "terminationGracePeriodSeconds"),
    ("Deployment", ("spec", "template", "spec", "containers", 0, "lifecycle", "preStop", "sleep"), "seconds"),
    ("Deployment", ("spec", "template", "spec", "containers", 0, "readinessProbe", "httpGet"), "path"),
    ("Deployment", ("spec", "template", "spec", "containers", 0, "securityContext"), "readOnlyRootFilesystem"),
    ("Service", ("spec", "ports", 0), "targetPort"),
    ("PodDisruptionBudget", ("spec",), "maxUnavailable"),
    ("NetworkPolicy", ("spec", "ingress", 0), "from"),
    ("Secret", (), "stringData"),
    ("ScaledObject", ("spec", "triggers", 0), "metadata"),
    ("ScaledObject", ("spec", "fallback"), "behavior"),
    ("PodMonitor", ("spec", "podMetricsEndpoints", 0), "interval"),
    ("PrometheusRule", ("spec", "groups", 0, "rules", 0), "annotations"),
    ("GRPCRoute", ("spec", "rules", 0, "matches", 0, "method"), "service"),
    ("HTTPRoute", ("spec", "rules", 0), "timeouts"),
    ("ServingRuntime", ("spec", "containers", 0), "startupProbe"),
    ("InferenceService", ("spec", "predictor", "model"), "storageUri"),
)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    objects = rendered(tmp_path_factory.mktemp("everything"), VALUES["everything"])
    # The gateway's last: what is planted goes into the first of a kind.
    ours = sorted(objects.values(), key=lambda one: "gateway" in one["metadata"]["name"])
    return [*ours, *manifests(KSERVE.read_text())]


@pytest.mark.parametrize(("kind", "path", "key"), TYPOS, ids=[f"{kind}-{key}" for kind, _, key in TYPOS])
def test_a_planted_typo_is_found(everything: list[dict[str, Any]], kind: str, path: tuple, key: str) -> None:
    manifest = copy.deepcopy(next(one for one in everything if one["kind"] == kind))
    assert faults(manifest) == []
    place = manifest
    for step in path:
        place = place[step]
    place[f"{key}s"] = place.pop(key)
    assert key in " ".join(faults(manifest))  # that it is unknown, or that the right one is missing


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(KSERVE.read_text().replace("startupProbe", "startProbe"))
    command = [sys.executable, ROOT / "deploy" / "kubernetes" / "check.py", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ServingRuntime mplug-triton: spec.containers.0: " in done.stdout and "'startProbe'" in done.stdout
    assert "InferenceService mplug: as its schema says" in done.stdout
    unknown = {"apiVersion": "apps/v9", "kind": "Deployment", "metadata": {"name": "m"}}
    assert faults(unknown) == ["no schema for apps/v9 Deployment"]
    with pytest.raises(ValueError, match="'kind' is given twice"):
        list(manifests("kind: Service\nkind: Secret\n"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("server.lameDuckSecond=3", "additional properties 'lameDuckSecond' not allowed"),
        ("gateways.replicas=3", "additional properties 'gateways' not allowed"),
        ("repository.source=clam", "/repository/source"),
        ("gateway.apiKeys.shop=short", "/gateway/apiKeys/shop"),
        ("server.drainSeconds=long", "/server/drainSeconds"),
        ("server.resources.limits.memory=8Gb", "/server/resources/limits/memory"),
        ("repository.source=image", "/repository/image"),
    ],
)
def test_helm_refuses_wrong_values(setting: str, said: str) -> None:
    done = helm("template", "m", CHART, "--set", setting)
    assert done.returncode == 1 and said in done.stderr


def test_each_default_is_described_by_the_schema_and_the_other_way_round() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        properties = schema.get("properties", {})
        if not properties:
            return
        assert set(values) == set(properties) - {"global"}, path
        for name, value in values.items():
            if isinstance(value, dict) and path != "/server/resources" and path != "/gateway/resources":
                compare(value, properties[name], f"{path}/{name}")

    compare(
        yaml.safe_load((CHART / "values.yaml").read_text()),
        json.loads((CHART / "values.schema.json").read_text()),
        "",
    )


def test_the_server_is_given_what_it_understands_and_time_to_drain(tmp_path: Path) -> None:
    objects = rendered(tmp_path, VALUES["everything"])
    spec = pod(objects, "m-server")
    (container,) = spec["containers"]
    options = parse_server(container["args"])
    assert (options.repository, options.host, options.drain_seconds) == ("/artefacts/repository", "0.0.0.0", 90)
    assert options.lame_duck > 2  # the gateway's checks
    assert options.trace_endpoint == "http://collector.monitoring.svc:4318/v1/traces"
    assert not options.restart  # the kubelet does that, and counts
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] == sleep + options.lame_duck + options.drain_seconds + 15
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": HTTP_PORT, "grpc": GRPC_PORT, "metrics": METRICS_PORT, "health": HEALTH_PORT}
    for probe, path in (("startupProbe", READY_PATH), ("readinessProbe", READY_PATH), ("livenessProbe", LIVE_PATH)):
        assert container[probe]["httpGet"] == {"path": path, "port": "health"}
    assert next(v for v in spec["volumes"] if v["name"] == "shared-memory")["emptyDir"]["medium"] == "Memory"
    assert {"name": "MPLUG_THREADS", "value": "3"} in container["env"]


def test_the_gateway_finds_the_servers_and_reads_the_keys(tmp_path: Path) -> None:
    objects = rendered(tmp_path, VALUES["everything"])
    spec = pod(objects, "m-gateway")
    options = parse_gateway(spec["containers"][0]["args"])
    sleep = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] == sleep + options.drain_seconds + 15
    server = Server.parse(options.server[0])
    assert server == Server("m-server.vision.svc.cluster.local", HTTP_PORT, GRPC_PORT, HEALTH_PORT)
    service = objects["Service", "m-server"]["spec"]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"]
    labels = objects["Deployment", "m-server"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert not objects["Service", "m"]["spec"]["selector"].items() <= labels.items()
    # The Secret is a file that the gateway takes, and is mounted with a mode that it takes.
    volume = next(volume for volume in spec["volumes"] if volume["name"] == "keys")["secret"]
    assert options.api_keys == Path("/keys/keys") and volume["defaultMode"] == 0o440
    path = tmp_path / "keys"
    path.write_text(objects["Secret", volume["secretName"]]["stringData"]["keys"])
    path.chmod(0o440)
    assert dict(read_keys(path)) == {"shop": KEY, "lab": f"{KEY}-2"}
    (rule, metrics) = objects["NetworkPolicy", "m-server"]["spec"]["ingress"]
    gateway_labels = objects["Deployment", "m-gateway"]["spec"]["template"]["metadata"]["labels"]
    assert rule["from"][0]["podSelector"]["matchLabels"].items() <= gateway_labels.items()
    assert metrics["ports"] == [{"port": "metrics"}]


@pytest.mark.parametrize("values", [BUILT, VALUES["everything"]], ids=["built", "image"])
def test_no_container_can_do_more_than_its_work(tmp_path: Path, values: dict[str, Any]) -> None:
    objects = rendered(tmp_path, values)
    for name in ("m-server", "m-gateway"):
        spec = pod(objects, name)
        assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            allowed = {"/tmp", "/dev/shm"} | ({"/artefacts"} if container["name"] == "build" else set())
            assert writable <= allowed


def test_a_server_that_is_built_at_the_start_has_its_checkpoint(tmp_path: Path) -> None:
    objects = rendered(tmp_path, BUILT, "--values", CHART / "values-cpu.yaml")
    spec = pod(objects, "m-server")
    (build,) = spec["initContainers"]
    assert build["args"] == ["/checkpoint/checkpoint", "--output=/artefacts/repository", "--target", "openvino"]
    assert parse_server(spec["containers"][0]["args"]).repository == "/artefacts/repository"
    assert {volume["name"] for volume in spec["volumes"]} >= {"checkpoint", "artefacts"}
