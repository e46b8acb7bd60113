"""API keys: whoever asks through a gateway sends one when told to, from a file or the environment."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_endpoint import endpoint_of
from test_gateway import KEY, gateway

from clients.client import Client, ClientError
from deploy.gateway.configuration import Gateway, Server
from mplug.server.command import TritonServer
from mplug.server.health import READY, HealthPort

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = Path(sys.prefix) / "page" / "bin" / "python"
WRONG = KEY[::-1]
COMMANDS = {
    "caption": ["{picture}"],
    "ask": ["{picture}", "what is this?"],
    "ground": ["{picture}", "the wolf"],
    "match": ["{picture}", "a wolf"],
    "nlvr": ["{picture}", "{picture}", "there is a wolf"],
    "entail": ["{picture}", "there is a wolf"],
    "embed": ["{picture}", "--json"],
    "batch": ["{folder}", "--output", "{folder}/captions.jsonl"],
    "retrieve": ["index", "{folder}", "--output", "{folder}/index"],
}


@pytest.fixture(scope="module")
def made(every_task_server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a key, before a server of all public models."""
    ports = [int(url.rpartition(":")[2]) for url in (every_task_server.http_url, every_task_server.grpc_url)]
    with HealthPort("127.0.0.1", 0) as health:
        health.state = READY
        server = Server("127.0.0.1", *ports, health.port)
        with gateway(tmp_path_factory.mktemp("gateway"), server, api_keys=(("somebody", KEY),)) as running:
            yield running


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


def url_of(made: Gateway, protocol: str) -> str:
    return f"127.0.0.1:{made.grpc_port if protocol == 'grpc' else made.http_port}"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_sends_its_key(
    made: Gateway,
    command: str,
    protocol: str,
    key_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "photos").mkdir()
    picture = tmp_path / "photos" / "wolf.png"
    picture.symlink_to(CHECKOUT / "examples" / "scene-01.png")
    places = {"picture": str(picture), "folder": str(picture.parent)}
    arguments = [argument.format(**places) for argument in COMMANDS[command]]
    arguments += ["--url", url_of(made, protocol), "--protocol", protocol]
    main = importlib.import_module(f"clients.{command}").main
    assert main(arguments) == 1
    printed = capsys.readouterr()
    written = "".join(path.read_text() for path in picture.parent.glob("*.jsonl"))
    assert "wants one: set MPLUG_API_KEY" in printed.out + printed.err + written
    if protocol == "grpc":
        monkeypatch.setenv("MPLUG_API_KEY", KEY)
    else:
        monkeypatch.setenv("MPLUG_API_KEY", WRONG)  # the option comes first
        arguments += ["--api-key-file", str(key_file)]
    assert main(arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert printed.out and KEY not in printed.out + printed.err


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_wrong_key_is_told_and_never_shown(made: Gateway, protocol: str) -> None:
    with Client(url_of(made, protocol), protocol, api_key=WRONG) as client:
        with pytest.raises(ClientError, match="is this API key among the gateway's") as refused:
            client.embed_text("a wolf")
        assert refused.value.status == "PERMISSION_DENIED" and WRONG not in str(refused.value)
        assert not client.is_ready()
        with pytest.raises(ClientError, match="PERMISSION_DENIED"):
            client.wait_ready(60)  # at once
    with Client(url_of(made, protocol), protocol, api_key=KEY) as client:
        client.wait_ready(60)
        assert client.is_ready("embed_text") and len(client.embed_text("a wolf"))


def test_the_openai_endpoint_sends_its_key(made: Gateway, key_file: Path) -> None:
    with endpoint_of(url_of(made, "grpc"), "--api-key-file", str(key_file)) as address:
        body = json.dumps({"model": "mplug", "input": "a wolf"}).encode()
        request = urllib.request.Request(
            f"http://{address}/v1/embeddings", body, {"Content-Type": "application/json", "x-api-key": WRONG}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["data"][0]["embedding"]


@pytest.mark.parametrize(
    ("program", "python"), [("deploy/openai/run.py", Path(sys.executable)), ("webpage/app.py", PAGE)]
)
def test_who_waits_for_a_server_is_told_of_a_wrong_key_at_once(made: Gateway, program: str, python: Path) -> None:
    if not python.exists():
        pytest.skip(f"{python} is missing; make demo installs it")
    command = [python, program, "--url", url_of(made, "grpc"), "--wait", "600"]
    environment = os.environ | {"MPLUG_API_KEY": WRONG}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"error: [^\n]*PERMISSION_DENIED[^\n]*\n", done.stderr) and WRONG not in done.stderr


def test_the_page_sends_its_key(made: Gateway, key_file: Path) -> None:
    """It looks for its own port once the server has let it in, and here that port is taken."""
    if not PAGE.exists():
        pytest.skip(f"{PAGE} is missing; make demo installs it")
    command = [PAGE, "webpage/app.py", "--url", url_of(made, "grpc"), "--port", str(made.http_port)]
    for key in (["--api-key-file", str(key_file)], []):
        environment = os.environ | {"MPLUG_API_KEY": WRONG if key else KEY}
        done = subprocess.run(
            [*command, *key], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1 and "the page cannot listen on" in done.stderr


def test_the_load_generator_sends_its_key(made: Gateway, key_file: Path) -> None:
    """Two users, one for each protocol."""
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary", "-f", "benchmarks/locustfile.py"]
    command += [
        "-u",
        "2",
        "-r",
        "2",
        "-t",
        "1s",
        "--grpc-url",
        url_of(made, "grpc"),
        "--http-url",
        url_of(made, "http"),
    ]
    done = subprocess.run(
        [*command, "--api-key-file", str(key_file)], cwd=CHECKOUT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    total = re.search(r"Aggregated +(\d+) +0\(", done.stderr)
    assert total and int(total[1]) > 0, done.stderr
