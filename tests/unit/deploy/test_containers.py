"""What the containers and the service may do, read from their files: no container is started here."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mplug.server.command import GRPC_PORT, HEALTH_PORT, HTTP_PORT
from mplug.server.command import _parse as parse_server

ROOT = Path(__file__).parents[3]
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
#: It makes a new volume that of the others' user, before they start, and has no network.
VOLUME = "volume"


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_can_do_more_than_its_work(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] and 0 < service["pids_limit"] <= 4096
    assert not service.get("privileged") and "docker.sock" not in str(service)
    if name == VOLUME:
        assert service["cap_add"] == ["CHOWN"] and service["network_mode"] == "none"
    else:
        assert "cap_add" not in service
        assert int(service["user"].split(":")[0]) > 0


def test_ports_are_on_loopback_unless_an_address_is_chosen() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert "triton" not in published  # others reach it through the gateway
    for ports in published.values():
        assert all(port.startswith(("127.0.0.1:", "${MPLUG_ADDRESS:-127.0.0.1}:")) for port in ports)
    assert [port for ports in published.values() for port in ports if "MPLUG_ADDRESS" in port] == published["gateway"]


def test_no_password_has_a_default() -> None:
    text = (ROOT / "compose.yaml").read_text()
    for variable in re.findall(r"\$\{(\w*PASSWORD\w*)([^}]*)\}", text):
        assert variable[1].startswith(":?"), variable
    assert "${GRAFANA_PASSWORD:?" in text


def test_the_server_has_time_to_drain_and_the_gateway_finds_it() -> None:
    triton = SERVICES["triton"]
    arguments = parse_server(triton["command"])
    assert triton["restart"] == "unless-stopped" and arguments.host == "0.0.0.0"
    assert arguments.lame_duck > 2  # the gateway's checks
    assert int(triton["stop_grace_period"].rstrip("s")) > arguments.lame_duck + arguments.drain_seconds
    servers = SERVICES["gateway"]["environment"]["MPLUG_GATEWAY_SERVERS"]
    assert servers == f"triton:{HTTP_PORT}:{GRPC_PORT}:{HEALTH_PORT}"


def test_every_image_ends_as_a_user_without_rights() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    ends = {re.search(r" AS (\w+)", stage)[1]: re.findall(r"^USER (\w+)", stage, re.MULTILINE) for stage in stages}
    used = {SERVICES[name]["build"]["target"] for name in ("triton", "build", "gateway", "openai")}
    assert ends == {"base": []} | {name: ["mplug"] for name in used | {"cpu"}}  # cpu is for the Helm chart


def test_the_entry_point_hands_over_the_process() -> None:
    lines = (ROOT / "deploy" / "entrypoint.sh").read_text().splitlines()
    commands = [line.strip() for line in lines if '"$@"' in line]
    assert commands and all(command.startswith("exec ") for command in commands)


def test_the_service_restarts_drains_and_is_confined() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(ROOT / "deploy" / "systemd" / "mplug.service")
    service = unit["Service"]
    assert (service["Restart"], service["KillMode"]) == ("on-failure", "mixed")
    assert int(service["RestartSec"]) < int(service["RestartMaxDelaySec"])
    arguments = parse_server(shlex.split(service["ExecStart"])[3:])
    assert int(service["TimeoutStopSec"]) > arguments.lame_duck + arguments.drain_seconds
    assert service["User"] != "root" and service["NoNewPrivileges"] == "yes" and service["CapabilityBoundingSet"] == ""
    assert service["ProtectSystem"] == "strict" and service["MemoryMax"] and service["TasksMax"]
