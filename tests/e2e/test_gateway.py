"""The gateway: what passes, what is refused with 4xx, and that a tritonserver behind it lives through attacks."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import http.server
import io
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from launcher import FREE_PORTS, Launched, launched
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from clients.client import Client
from deploy.gateway.configuration import BODY_BYTES, JSON_DEPTH, PUBLIC_MODELS, Gateway, Server
from deploy.gateway.run import GatewayError, find_envoy, read_keys, start, write
from mplug.server.command import TritonServer
from mplug.server.health import READY, HealthPort
from mplug.tasks.table import PUBLIC_MODELS as TABLE

CHECKOUT = Path(__file__).resolve().parents[2]
KEY = "correct-horse-battery-staple"


def envoy() -> list[str]:
    """The command of Envoy; skips where there is none."""
    beside = Path(sys.executable).parents[1] / "gateway" / "bin" / "envoy"
    try:
        return find_envoy(str(beside) if beside.exists() else None)
    except GatewayError as error:
        pytest.skip(f"{error} (make gateway does)")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def gateway(folder: Path, *servers: Server, **options: object) -> Iterator[Gateway]:
    """A gateway that runs, once it says that a server behind it is ready."""
    http_port, grpc_port = free_ports(2)
    made = Gateway(servers, http_port=http_port, grpc_port=grpc_port, **options)
    write(made, folder / "envoy.json")
    process = start(envoy(), folder / "envoy.json", concurrency=1)
    try:
        deadline = time.monotonic() + 30
        while status(made, "GET", "/v2/health/ready") not in (200, 403):
            assert process.poll() is None and time.monotonic() < deadline, "the gateway is not ready"
            time.sleep(0.05)
        yield made
        assert process.poll() is None, "the gateway has ended"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answer(
    made: Gateway, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of an HTTP request to the gateway; 0 where it takes no connection."""
    if made.certificate:
        context = ssl.create_default_context(cafile=str(made.certificate))
        connection = http.client.HTTPSConnection("localhost", made.http_port, timeout=60, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", made.http_port, timeout=60)
    try:
        connection.request(method, path, body=body, headers=headers or {}, encode_chunked=hasattr(body, "__next__"))
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionRefusedError:
        return 0, b""
    finally:
        connection.close()


def status(*arguments: object, **options: object) -> int:
    return answer(*arguments, **options)[0]


# A task with a public name, and a stage behind it.
CONFIG = """
backend: "python"
max_batch_size: 0
input [
  { name: "X" data_type: TYPE_FP32 dims: [1] },
  { name: "NOTE" data_type: TYPE_STRING dims: [-1] optional: true }
]
output [{ name: "Y" data_type: TYPE_FP32 dims: [1] }]
"""
MODEL = """
from mplug.triton.models import TaskModel


class Double:
    def parse(self, inputs):
        return inputs["X"]

    async def run(self, request, call_stage):
        return {"Y": request * 2}


class TritonPythonModel(TaskModel):
    def create(self, context):
        return Double()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, write_model) -> Iterator[Launched]:
    envoy()  # to skip before a server is started
    repository = tmp_path_factory.mktemp("public")
    for name in ("caption", "large_caption", "text_decoder"):
        write_model(repository, name, CONFIG, MODEL)
    with launched(repository, *FREE_PORTS) as server:
        server.wait_ready()
        yield server


def place(server: Launched) -> Server:
    ports = [url.rpartition(":")[2].partition("/")[0] for url in (server.http_url, server.grpc_url, server.health_url)]
    return Server("127.0.0.1", *map(int, ports))


@pytest.fixture(scope="module")
def made(server: Launched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("gateway"), place(server)) as running:
        yield running


@pytest.fixture(autouse=True)
def the_server_lives(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that uses it, the server that was started answers as before."""
    yield
    if "made" in request.fixturenames:
        server, made = request.getfixturevalue("server"), request.getfixturevalue("made")
        assert server.process.poll() is None
        assert double(made, 4) == (200, 8)


def double(made: Gateway, x: float, **note: object) -> tuple[int, float | None]:
    code, body = answer(made, "POST", "/v2/models/caption/generate", json.dumps({"X": x, **note}).encode())
    return code, json.loads(body)["Y"] if code == 200 else None


def grpc_client(made: Gateway) -> triton_grpc.InferenceServerClient:
    return triton_grpc.InferenceServerClient(f"127.0.0.1:{made.grpc_port}")


def x_input(module) -> object:
    tensor = module.InferInput("X", [1], "FP32")
    tensor.set_data_from_numpy(np.array([3], np.float32))
    return tensor


def test_the_models_that_pass_are_the_public_ones() -> None:
    assert set(PUBLIC_MODELS) == set(TABLE)


@pytest.mark.parametrize("model", ["caption", "large_caption"])
def test_inference_and_metadata_pass(made: Gateway, model: str) -> None:
    with grpc_client(made) as client:
        assert client.infer(model, [x_input(triton_grpc)]).as_numpy("Y").tolist() == [6]
        assert client.is_server_ready() and client.is_server_live() and client.is_model_ready(model)
        assert client.get_model_metadata(model).name == model and client.get_server_metadata().name == "triton"
    with triton_http.InferenceServerClient(f"127.0.0.1:{made.http_port}") as client:
        assert client.infer(model, [x_input(triton_http)]).as_numpy("Y").tolist() == [6]  # JSON, then binary data
        assert client.is_server_ready() and client.is_server_live() and client.is_model_ready(model)
        assert client.get_model_metadata(model)["name"] == model and client.get_server_metadata()["name"] == "triton"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_pictures_pass(every_task_server: TritonServer, tmp_path: Path, protocol: str) -> None:
    """A large one too, as it is and as a data URI, with the answers of the server itself."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(3).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")  # 3 MB
    picture = buffer.getvalue()
    ports = [int(url.rpartition(":")[2]) for url in (every_task_server.http_url, every_task_server.grpc_url)]
    with HealthPort("127.0.0.1", 0) as health:
        health.state = READY
        with gateway(tmp_path, Server("127.0.0.1", *ports, health.port)) as made:
            port = made.grpc_port if protocol == "grpc" else made.http_port
            direct = every_task_server.grpc_url if protocol == "grpc" else every_task_server.http_url
            with Client(f"127.0.0.1:{port}", protocol) as through, Client(direct, protocol) as client:
                np.testing.assert_array_equal(through.embed_image(picture), client.embed_image(picture))
                assert through.caption(picture) == client.caption(picture)
            uri = "data:image/png;base64," + base64.b64encode(picture).decode()
            code, body = answer(made, "POST", "/v2/models/caption/generate", json.dumps({"IMAGE": uri}).encode())
            assert code == 200 and json.loads(body)["CAPTION"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/models/text_decoder/infer"),
        ("POST", "/v2/models/text_decoder/generate"),
        ("GET", "/v2/models/text_decoder"),
        ("POST", "/v2/models/caption/generate_stream"),
        ("GET", "/v2/models/caption/config"),
        ("GET", "/v2/models/caption/stats"),
        ("GET", "/v2/models/stats"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/caption/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/a/register"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/trace/setting"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/models/caption/../text_decoder/infer"),
        ("POST", "/v2/models/caption/%2e%2e/text_decoder/infer"),
        ("POST", "/v2/models/caption%2f..%2ftext_decoder/infer"),
        ("POST", "//v2/models/text_decoder/infer"),
        ("PUT", "/v2/models/caption/infer"),
        ("GET", "/metrics"),
        ("POST", "/inference.GRPCInferenceService/ModelInfer"),
    ],
)
def test_everything_else_is_not_there(made: Gateway, method: str, path: str) -> None:
    assert status(made, method, path, b"{}" if method == "POST" else None) in (400, 404)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b'{"X": 1, "NOTE": ' + b"[" * (JSON_DEPTH + 1) + b"]" * (JSON_DEPTH + 1) + b"}",
        b'{"NOTE": "\\\\", "X": ' + b"[" * 100_000,
        b"[" + b"[]," * 200_000 + b"[]]",
        b'"' + b'\\"' * 1_000_000 + b'"',
        b'"' + b"\\" * 1_000_001 + b'"',
    ],
    ids=["brackets", "objects", "one too deep", "after an escape", "many", "escaped quotes", "backslashes"],
)
@pytest.mark.parametrize("verb", ["infer", "generate"])
def test_json_that_ends_a_parser_is_refused(made: Gateway, body: bytes, verb: str) -> None:
    code, text = answer(made, "POST", f"/v2/models/caption/{verb}", body)
    assert code == 400 and b"the JSON" in text
    # For /generate Triton reads the whole body whatever this header says; for /infer no more than it says.
    short = status(made, "POST", f"/v2/models/caption/{verb}", body, {"Inference-Header-Content-Length": "8"})
    assert short == 400 or (verb == "infer" and short == 500)


def test_brackets_within_strings_are_no_depth(made: Gateway) -> None:
    assert double(made, 2, NOTE="[{" * 1000 + '\\"[[' * 1000) == (200, 4)
    assert double(made, 2, NOTE=["}]"] * 1000) == (200, 4)


def test_a_hundred_thousand_chunks_become_one_body(made: Gateway) -> None:
    body = json.dumps({"X": 2, "NOTE": "a" * 100_000}).encode()
    code, text = answer(made, "POST", "/v2/models/caption/generate", (bytes([one]) for one in body))
    assert code == 200 and json.loads(text)["Y"] == 4
    assert status(made, "POST", "/v2/models/caption/generate", (b"[" for _ in range(100_000))) == 400


def test_compressed_bodies_are_refused(made: Gateway) -> None:
    packed = gzip.compress(b'{"X": 2, "NOTE": "' + bytes(1) * 10_000_000 + b'"}')
    for encoding in ("gzip", "deflate", "identity, gzip", "br"):
        headers = {"Content-Encoding": encoding}
        assert status(made, "POST", "/v2/models/caption/generate", packed, headers) == 415
    channel = grpc.insecure_channel(f"127.0.0.1:{made.grpc_port}", compression=grpc.Compression.Gzip)
    with channel, pytest.raises(grpc.RpcError) as refused:
        request = service_pb2.ModelInferRequest(model_name="caption", raw_input_contents=[bytes(1_000_000)])
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED and "compressed" in refused.value.details()


def test_streams_and_their_header_are_refused(made: Gateway) -> None:
    target = f"127.0.0.1:{made.grpc_port}"
    with grpc.insecure_channel(target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="caption")
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ModelStreamInfer(iter([request] * 3), timeout=30, metadata=[("triton_grpc_error", "true")]))
        assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ModelStreamInfer(iter([request] * 3), timeout=30))
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert status(made, "POST", "/v2/models/caption/generate", b'{"X": 1}', {"triton_grpc_error": "true"}) == 400


def raw_call(made: Gateway, method: str, message: bytes) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{made.grpc_port}") as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        try:
            call(message, timeout=30)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_other_models_and_methods_are_refused_over_grpc(made: Gateway) -> None:
    infer = service_pb2.ModelInferRequest
    stage = infer(model_name="text_decoder").SerializeToString()
    public = infer(model_name="caption").SerializeToString()
    for message in (stage, public + stage, stage + public):  # the last field of a name counts
        assert raw_call(made, "ModelInfer", message) == grpc.StatusCode.NOT_FOUND
    for name in ("_caption", "a/caption", "captions", "caption/../text_decoder", "x" * 300 + "_caption"):
        assert raw_call(made, "ModelInfer", infer(model_name=name).SerializeToString()) == grpc.StatusCode.NOT_FOUND
    for broken in (b"", b"\x0b", b"\xff" * 30, b"\x0a\x7f", b"\x0b" * 5000, public + b"\x3a\xff\xff\xff\xff\x0f"):
        assert raw_call(made, "ModelInfer", broken) == grpc.StatusCode.INVALID_ARGUMENT
    for method in (
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
        "RepositoryModelUnload",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "TraceSetting",
        "LogSettings",
    ):
        assert raw_call(made, method, public) == grpc.StatusCode.UNIMPLEMENTED
    with grpc_client(made) as client, pytest.raises(InferenceServerException, match="not a public model"):
        client.get_model_metadata("text_decoder")


def test_bodies_and_headers_are_bounded(made: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", made.http_port), timeout=30) as connection:
        head = f"POST /v2/models/caption/generate HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY_BYTES + 1}\r\n\r\n"
        connection.sendall(head.encode())  # refused by what is announced, before it is sent
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    block = b" " * (1 << 20)
    chunks = (block for _ in range((BODY_BYTES >> 20) + 1))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that goes on sending is cut off
        assert status(made, "POST", "/v2/models/caption/generate", chunks) == 413
    assert status(made, "GET", "/v2/health/ready", headers={"a": "b" * 40_000}) == 431
    assert status(made, "GET", "/v2/health/ready", headers={f"a{index}": "b" for index in range(100)}) == 431


def test_an_api_key_is_asked_for(server: Launched, tmp_path: Path) -> None:
    with gateway(tmp_path, place(server), api_keys=(("somebody", KEY), ("other", KEY[::-1]))) as made:
        path = "/v2/models/caption/generate"
        for headers in ({}, {"x-api-key": KEY[:-1]}, {"x-api-key": f"{KEY}{KEY}"}, {"authorization": KEY}):
            assert status(made, "POST", path, b'{"X": 1}', headers) == 403
        for key in (KEY, KEY[::-1]):
            assert status(made, "POST", path, b'{"X": 1}', {"x-api-key": key}) == 200
        with grpc_client(made) as client:
            with pytest.raises(InferenceServerException) as refused:
                client.infer("caption", [x_input(triton_grpc)])
            assert "PERMISSION_DENIED" in refused.value.status()
            found = client.infer("caption", [x_input(triton_grpc)], headers={"x-api-key": KEY})
            assert found.as_numpy("Y").tolist() == [6]
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert KEY not in listed
        assert (tmp_path / "envoy.json").stat().st_mode & 0o777 == 0o600


def test_files_of_api_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# name key\n\nsomebody {KEY}\n")
    path.chmod(0o644)
    with pytest.raises(GatewayError, match="can be read by everybody"):
        read_keys(path)
    path.chmod(0o600)
    assert read_keys(path) == (("somebody", KEY),)
    for text, reason in (("somebody short", "line 1: not NAME KEY"), ("", "holds no keys"), (KEY, "line 1")):
        path.write_text(text)
        with pytest.raises(GatewayError, match=reason):
            read_keys(path)
    with pytest.raises(GatewayError, match="No such file"):
        read_keys(tmp_path / "absent")


def test_tls(server: Launched, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not here")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    tls = {"certificate": tmp_path / "certificate.pem", "private_key": tmp_path / "key.pem"}
    with gateway(tmp_path, place(server), **tls) as made:
        assert status(made, "POST", "/v2/models/caption/generate", b'{"X": 1}') == 200
        with pytest.raises(OSError):
            status(replace(made, certificate=None), "GET", "/v2/health/ready")
        root = (tmp_path / "certificate.pem").read_bytes()
        with grpc.secure_channel(f"localhost:{made.grpc_port}", grpc.ssl_channel_credentials(root)) as channel:
            assert (
                service_pb2_grpc.GRPCInferenceServiceStub(channel)
                .ServerReady(service_pb2.ServerReadyRequest(), timeout=30)
                .ready
            )


def test_bad_arguments_are_told(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        command = [sys.executable, "deploy/gateway/run.py", *map(str, arguments)]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        return done.stderr

    good = ("--server", "127.0.0.1:8000:8001:8003")
    assert "no server: give --server" in run()
    assert "'a:b' is not HOST:HTTP-PORT" in run("--server", "a:b")
    assert "needs both --certificate and --private-key" in run(*good, "--certificate", tmp_path / "a")
    assert "no Envoy at /absent" in run(*good, "--envoy", "/absent")


class Upstream(http.server.BaseHTTPRequestHandler):
    """In place of a server: ready at once, and slow to answer."""

    protocol_version = "HTTP/1.1"
    asked = threading.Event()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.set()
        time.sleep(1)
        self._answer()

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_a_gateway_that_ends_answers_what_is_in_flight_and_says_that_it_goes() -> None:
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port = upstream.server_address[1]
    http_port, grpc_port = free_ports(2)
    ports = [f"--http-port={http_port}", f"--grpc-port={grpc_port}", f"--server=127.0.0.1:{port}:{port}:{port}"]
    process = subprocess.Popen([sys.executable, "deploy/gateway/run.py", "--envoy", *envoy(), *ports], cwd=CHECKOUT)
    try:
        place = Gateway((), http_port=http_port, grpc_port=grpc_port)
        deadline = time.monotonic() + 30
        while status(place, "GET", "/v2/health/ready") != 200:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=20)
        connection.request("POST", "/v2/models/caption/infer", b"{}")
        assert Upstream.asked.wait(10)
        process.terminate()
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"{}")
        assert response.getheader("connection") == "close"
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        upstream.shutdown()
        upstream.server_close()
