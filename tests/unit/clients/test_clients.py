"""Clients and command line against small servers of our own that speak KServe's protocol over gRPC and HTTP.

What matters here is what a user sees when something goes wrong; the real server is asked in tests/e2e.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import pydoc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_type_hints

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from clients import caption as command
from clients.client import AsyncClient, Caption, Client, ClientError, calls, retries

ROOT = Path(__file__).parents[3]
HTTP_CODES = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNAVAILABLE": 503, "INTERNAL": 500}


class Refusal(Exception):
    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fake:
    """A server with one model. `answer` takes the bytes of IMAGE; returns (text, score, ids) or raises."""

    url: str = ""
    ready: bool = True
    asked: list[str] = field(default_factory=list)
    answer: Callable[[bytes], tuple[str, float, list[int]]] = lambda image: ("a cat", -1.5, [101, 7, 102])


def serve_grpc(fake: Fake) -> Callable[[], object]:
    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ServerReady(self, request: Any, context: Any) -> Any:
            return service_pb2.ServerReadyResponse(ready=fake.ready)

        def ModelReady(self, request: Any, context: Any) -> Any:
            return service_pb2.ModelReadyResponse(ready=request.name == "caption")

        def ModelInfer(self, request: Any, context: Any) -> Any:
            fake.asked.append(request.model_name)
            names = [tensor.name for tensor in request.inputs]
            image = deserialize_bytes_tensor(request.raw_input_contents[names.index("IMAGE")])[0]
            try:
                text, score, ids = fake.answer(image)
            except Refusal as refusal:
                context.abort(grpc.StatusCode[refusal.status], str(refusal))
            outputs = {
                "CAPTION": ("BYTES", [1], serialize_byte_tensor(np.array([text.encode()], object)).item()),
                "SCORE": ("FP32", [1], np.array([score], np.float32).tobytes()),
                "TOKEN_IDS": ("INT32", [1, len(ids)], np.array(ids, np.int32).tobytes()),
            }
            response = service_pb2.ModelInferResponse(model_name=request.model_name)
            for name, (datatype, shape, content) in outputs.items():
                response.outputs.add(name=name, datatype=datatype, shape=shape)
                response.raw_output_contents.append(content)
            return response

    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    fake.url = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    return lambda: server.stop(None).wait()


def serve_http(fake: Fake) -> Callable[[], object]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, code: int, body: object = None) -> None:
            data = b"" if body is None else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            ready = fake.ready if self.path == "/v2/health/ready" else self.path == "/v2/models/caption/ready"
            self.reply(200 if ready else 400)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            header = int(self.headers["Inference-Header-Content-Length"])
            first = json.loads(body[:header])["inputs"][0]
            assert first["name"] == "IMAGE"
            size = first["parameters"]["binary_data_size"]
            image = deserialize_bytes_tensor(body[header : header + size])[0]
            fake.asked.append(self.path.split("/")[3])
            try:
                text, score, ids = fake.answer(image)
            except Refusal as refusal:
                return self.reply(HTTP_CODES[refusal.status], {"error": str(refusal)})
            outputs = [
                {"name": "CAPTION", "datatype": "BYTES", "shape": [1], "data": [text]},
                {"name": "SCORE", "datatype": "FP32", "shape": [1], "data": [score]},
                {"name": "TOKEN_IDS", "datatype": "INT32", "shape": [1, len(ids)], "data": ids},
            ]
            self.reply(200, {"model_name": "caption", "model_version": "1", "outputs": outputs})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    fake.url = f"127.0.0.1:{server.server_port}"

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fake(protocol: str) -> Iterator[Fake]:
    fake = Fake()
    stop = {"grpc": serve_grpc, "http": serve_http}[protocol](fake)
    yield fake
    stop()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens; held, so that nobody else can take it meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest, protocol: str) -> Callable[..., Any]:
    """Calls a method of either client and closes it."""

    def blocking(url: str, method: str, *arguments: Any, timeout: float = 20.0) -> Any:
        with Client(url, protocol, timeout) as client:
            return getattr(client, method)(*arguments)

    async def with_asyncio(url: str, method: str, *arguments: Any, timeout: float = 20.0) -> Any:
        async with AsyncClient(url, protocol, timeout) as client:
            return await getattr(client, method)(*arguments)

    if request.param == "blocking":
        return blocking
    return lambda *arguments, **options: asyncio.run(with_asyncio(*arguments, **options))


# ---------------------------------------------------------------------------------------------- clients


def test_caption(fake: Fake, ask: Callable[..., Any]) -> None:
    seen: list[bytes] = []

    def answer(image: bytes) -> tuple[str, float, list[int]]:
        seen.append(image)
        return "a café", -1.25, [101, 7, 102, 0]

    fake.answer = answer
    large = bytes(range(256)) * 40_000  # 10 MB, beyond gRPC's own limits
    assert ask(fake.url, "caption", large) == [Caption("a café", -1.25, [101, 7, 102])]
    assert seen == [large]


def test_invalid_argument_shows_what_the_server_says(fake: Fake, ask: Callable[..., Any]) -> None:
    def refuse(image: bytes) -> Any:
        raise Refusal("INVALID_ARGUMENT", "IMAGE is empty:\nsend the bytes of an encoded image")

    fake.answer = refuse
    with pytest.raises(ClientError) as caught:
        ask(fake.url, "caption", b"")
    assert str(caught.value) == "IMAGE is empty: send the bytes of an encoded image"
    assert caught.value.status == "INVALID_ARGUMENT"
    assert len(fake.asked) == 1  # asking again would not help


@pytest.mark.parametrize("status", ["NOT_FOUND", "INTERNAL"])
def test_other_errors_name_model_and_server(fake: Fake, ask: Callable[..., Any], status: str) -> None:
    def refuse(image: bytes) -> Any:
        raise Refusal(status, "Request for unknown model: 'vqa' is not found")

    fake.answer = refuse
    with pytest.raises(ClientError, match=rf"vqa at {fake.url} \(\w+\) answered {status}: Request") as caught:
        ask(fake.url, "vqa", b"i", "what?")
    assert caught.value.status == status
    assert fake.asked == ["vqa"]


def test_a_server_not_ready_is_asked_again(fake: Fake, ask: Callable[..., Any]) -> None:
    def answer(image: bytes) -> tuple[str, float, list[int]]:
        if len(fake.asked) < 3:
            raise Refusal("UNAVAILABLE", "caption is not at ready state")
        return "a cat", -1.0, [101, 102]

    fake.answer = answer
    assert ask(fake.url, "caption", b"i")[0].text == "a cat"
    assert len(fake.asked) == 3


def test_asking_again_has_an_end(fake: Fake, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)

    def refuse(image: bytes) -> Any:
        raise Refusal("UNAVAILABLE", "caption is not at ready state")

    fake.answer = refuse
    with pytest.raises(ClientError, match="answered UNAVAILABLE: caption is not at ready state") as caught:
        ask(fake.url, "caption", b"i")
    assert caught.value.status == "UNAVAILABLE"
    assert len(fake.asked) == 6


def test_pauses_grow_are_spread_and_end_by_the_deadline() -> None:
    busy, far, policy = ClientError("busy", "UNAVAILABLE"), time.monotonic() + 1000, retries.RetryPolicy()
    for attempt in range(retries.DEFAULT_RETRIES["UNAVAILABLE"]):
        pauses = {policy.pause(busy, attempt, far) for _ in range(50)}
        assert len(pauses) > 1
        assert 0.075 * 2**attempt <= min(pauses) <= max(pauses) <= 0.125 * 2**attempt
    assert retries.RetryPolicy(100).pause(busy, 99, far) <= 6.25  # seconds; pauses are bounded
    for error, attempt, deadline in [
        (busy, retries.DEFAULT_RETRIES["UNAVAILABLE"], far),
        (busy, 0, time.monotonic() + 0.05),  # before the pause is over
        (ClientError("wrong", "INVALID_ARGUMENT"), 0, far),
        (ClientError("late", "DEADLINE_EXCEEDED"), 0, far),
        (ClientError("away", "UNREACHABLE"), retries.DEFAULT_RETRIES["UNREACHABLE"], far),
        (ClientError("no such model", "NOT_FOUND"), 0, far),
    ]:
        with pytest.raises(ClientError) as caught:
            policy.pause(error, attempt, deadline)
        assert caught.value is error
    with pytest.raises(ClientError, match="retries is 101, it must be from 0 to 100"):
        Client(retries=101)


def test_a_model_that_vanishes_is_asked_for_again(fake: Fake, ask: Callable[..., Any]) -> None:
    """A server that shuts down drops its models first: NOT_FOUND then, while another may take over its address."""

    def answer(image: bytes) -> tuple[str, float, list[int]]:
        if len(fake.asked) == 1:
            fake.ready = False
            raise Refusal("NOT_FOUND", "Request for unknown model: 'caption' is not found")
        return "a cat", -1.0, [101, 102]

    fake.answer = answer
    assert ask(fake.url, "caption", b"i")[0].text == "a cat"
    assert len(fake.asked) == 2


def test_a_model_that_answered_before_is_asked_for_again(fake: Fake, protocol: str) -> None:
    def answer(image: bytes) -> tuple[str, float, list[int]]:
        if len(fake.asked) == 2:
            raise Refusal("NOT_FOUND", "Request for unknown model: 'caption' is not found")
        return "a cat", -1.0, [101, 102]

    fake.answer = answer
    with Client(fake.url, protocol) as client:
        for _ in range(2):
            assert client.caption(b"i")[0].text == "a cat"
    assert len(fake.asked) == 3


def test_retries_can_be_chosen(fake: Fake, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)

    def refuse(image: bytes) -> Any:
        raise Refusal("UNAVAILABLE", "caption is not at ready state")

    fake.answer = refuse
    for number in (0, 2):
        fake.asked.clear()
        with Client(fake.url, protocol, retries=number) as client, pytest.raises(ClientError):
            client.caption(b"i")
        assert len(fake.asked) == 1 + number


def test_server_away(nobody: str, ask: Callable[..., Any]) -> None:
    began = time.monotonic()
    with pytest.raises(ClientError, match=f"no Triton server answers at {nobody}.* is it running") as caught:
        ask(nobody, "caption", b"i")
    assert caught.value.status == "UNREACHABLE"
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 10  # seconds; it gives up by itself, long before the timeout


def test_late_answer(fake: Fake, ask: Callable[..., Any]) -> None:
    def answer(image: bytes) -> tuple[str, float, list[int]]:
        time.sleep(1.5)
        return "too late", 0.0, [101]

    fake.answer = answer
    with pytest.raises(ClientError, match=r"no answer from .* within 0\.3 s") as caught:
        ask(fake.url, "caption", b"i", timeout=0.3)
    assert caught.value.status == "DEADLINE_EXCEEDED"


def test_readiness(fake: Fake, nobody: str, ask: Callable[..., Any]) -> None:
    assert ask(fake.url, "is_ready")
    assert ask(fake.url, "is_ready", "caption")
    assert not ask(fake.url, "is_ready", "vqa")
    assert not ask(nobody, "is_ready")


def test_many_requests_at_once(fake: Fake, protocol: str) -> None:
    fake.answer = lambda image: (image.decode(), 0.0, [101])

    async def captions() -> list[list[Caption]]:
        async with AsyncClient(fake.url, protocol) as client:
            return await asyncio.gather(*(client.caption(str(n).encode()) for n in range(20)))

    assert [each[0].text for each in asyncio.run(captions())] == [str(n) for n in range(20)]


@pytest.mark.parametrize("url", ["http://localhost:8000", "localhost", "localhost:0", "localhost:99999", ""])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_malformed_url(client: type, url: str) -> None:
    with pytest.raises(ClientError, match="is not HOST:PORT, for example localhost:8001"):
        client(url)


def test_wrong_settings() -> None:
    with pytest.raises(ClientError, match="protocol is 'ftp', it must be one of grpc, http"):
        Client("localhost:1", "ftp")
    with pytest.raises(ClientError, match="timeout is 0 s"):
        Client("localhost:1", timeout=0)


@pytest.mark.parametrize("name", ["caption", "vqa", "embed_image", "embed_text", "match", "ground", "nlvr", "entail"])
def test_both_clients_have_the_signatures_of_the_calls(name: str) -> None:
    declared = inspect.signature(getattr(calls, name))
    call = get_type_hints(getattr(calls, name))["return"]
    for client, is_awaited in ((Client, False), (AsyncClient, True)):
        method = getattr(client, name)
        assert inspect.iscoroutinefunction(method) == is_awaited
        found = inspect.signature(method)
        assert list(found.parameters.values())[1:] == list(declared.parameters.values())
        assert calls.Call[found.return_annotation] == call
        assert method.__name__ == name and method.__qualname__ == f"{client.__name__}.{name}"
        assert method.__doc__ == getattr(calls, name).__doc__
        shown = pydoc.plain(pydoc.render_doc(client))
        assert all(parameter in shown for parameter in declared.parameters)
    with pytest.raises(TypeError, match="beams"):
        Client().caption(b"i", beams=3)


# ----------------------------------------------------------------------------------------- command line


def run_script(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    script = os.path.relpath(ROOT / "clients" / "caption.py", cwd)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Two files, by content what the fake answers."""
    for name in ("one.jpg", "two.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return [str(tmp_path / "one.jpg"), str(tmp_path / "two.jpg")]


def test_one_caption(fake: Fake, protocol: str, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([photos[0], "--url", fake.url, "--protocol", protocol]) == 0
    assert capsys.readouterr().out == "a cat\n"


def test_some_captions_and_some_failures(
    fake: Fake, protocol: str, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(image: bytes) -> tuple[str, float, list[int]]:
        if image == b"one.jpg":
            raise Refusal("INVALID_ARGUMENT", "IMAGE is not an image")
        return "two dogs", -2.0, [101, 102]

    fake.answer = answer
    missing = str(tmp_path / "missing.jpg")
    code = command.main([missing, str(tmp_path), *photos, "--url", fake.url, "--protocol", protocol])
    printed = capsys.readouterr()
    assert code == 1
    assert printed.out == f"{photos[1]}\ttwo dogs\n"
    assert printed.err.splitlines() == [
        f"error: {missing} cannot be read: No such file or directory",
        f"error: {tmp_path} cannot be read: Is a directory",
        f"error: {photos[0]}: IMAGE is not an image",
    ]


def test_json(fake: Fake, protocol: str, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def answer(image: bytes) -> tuple[str, float, list[int]]:
        if image == b"one.jpg":
            raise Refusal("INVALID_ARGUMENT", "IMAGE is not an image")
        return "two dogs", -2.0, [101, 5, 102, 0]

    fake.answer = answer
    assert command.main([*photos, "--json", "--url", fake.url, "--protocol", protocol]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"image": photos[0], "error": "IMAGE is not an image"}
    assert second == {
        "image": photos[1],
        "captions": [{"text": "two dogs", "score": -2.0, "token_ids": [101, 5, 102]}],
    }


def test_server_away_is_said_once(nobody: str, protocol: str, photos: list[str]) -> None:
    done = run_script(*photos, "--url", nobody, "--protocol", protocol)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: no Triton server answers at {nobody} ({protocol}): is it running")


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([], "give pictures, or --video FILE, or --frames FILE"),
        (["a.jpg", "--num-beams", "few"], "argument --num-beams: invalid int value"),
        (["a.jpg", "--url", "http://localhost:8000"], "'http://localhost:8000' is not HOST:PORT"),
        (["a.jpg", "--timeout", "-1"], "timeout is -1.0 s, it must be positive"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = command.main(arguments)
    except SystemExit as left:
        code = left.code
    printed = capsys.readouterr().err
    assert code == 1
    assert printed.startswith(f"error: {complaint}") and printed.count("\n") == 1


def test_help_shows_an_example_from_any_folder(tmp_path: Path) -> None:
    for folder in (ROOT, tmp_path):
        done = run_script("--help", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "python clients/caption.py photo.jpg" in done.stdout


def test_clients_import_nothing_of_the_server() -> None:
    probe = "import sys, clients.client, clients.caption; print([m for m in sys.modules if m.split('.')[0] in "
    probe += "('mplug', 'builders', 'torch', 'transformers')])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
