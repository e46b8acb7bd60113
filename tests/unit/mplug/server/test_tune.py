"""Threads by measurement: what is tried, what is chosen, and the load that measures it, against a tiny server."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from mplug.server import command, tune
from mplug.server.install import ServerError
from mplug.server.signals import Signals

LOAD = tune.Load(clients=3, warm=0.05, window=0.2)


def test_all_cores_and_halves_of_them_are_tried() -> None:
    tried = {cores: tune.candidates(cores) for cores in (1, 2, 6, 32)}
    assert tried == {1: [1], 2: [2, 1], 6: [6, 3, 1], 32: [32, 16, 8, 4]}


def test_fewer_threads_must_gain_something() -> None:
    assert tune.choose({2: 2.35, 1: 2.62}) == 1
    assert tune.choose({2: 2.35, 1: 2.36}) == 2
    assert tune.choose({8: 5.0, 4: 6.0, 2: 6.0, 1: 3.0}) == 4


def test_each_rate_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.tuned_threads(2, tune.Load(16), {2: 2.0, 1: 3.0}.__getitem__) == 1
    told = capsys.readouterr().err.splitlines()
    assert (
        told[0] == "tuning for 16 clients: 2 threads a stage, 2.00 answers a second" and "1 thread a stage" in told[1]
    )


def test_model_that_is_asked() -> None:
    assert tune.model_to_ask(["text_decoder", "vqa", "caption"]) == ("caption", {})
    assert tune.model_to_ask(["embed_image", "large_vqa"]) == ("large_vqa", tune.QUESTIONS["vqa"])
    with pytest.raises(ServerError, match="serves none of caption, vqa, embed_image"):
        tune.model_to_ask(["embed_text"])


@contextmanager
def answering(status: int = 200, seconds: float = 0.0) -> Iterator[tuple[str, list[dict[str, bytes]]]]:
    """Serve KServe's HTTP; yields HOST:PORT and the inputs of every request."""
    received: list[dict[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = int(self.headers["Inference-Header-Content-Length"])
            inputs, data = {}, body[head:]
            for tensor in json.loads(body[:head])["inputs"]:
                size = tensor["parameters"]["binary_data_size"]
                (length,) = struct.unpack_from("<I", data)
                inputs[tensor["name"]], data = data[4 : 4 + length], data[size:]
            received.append(inputs)
            time.sleep(seconds)
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.socket.close()


def test_closed_loop_counts_answers() -> None:
    with answering(seconds=0.02) as (address, received):
        rate = tune.answers_per_second(address, ["vqa"], LOAD, lambda: False)
        assert 0 < rate <= 3 / 0.02 * 1.2
        pictures = [inputs["IMAGE"] for inputs in received]
        assert len(set(pictures)) == len(pictures)  # no cache answers
        assert Image.open(io.BytesIO(pictures[0])).size == tune.PICTURE_SIZE
        assert {inputs["QUESTION"] for inputs in received} == {b"what is in the picture?"}


def test_a_failed_request_ends_the_tuning() -> None:
    with answering(status=503) as (address, _), pytest.raises(ServerError, match="caption answered 503"):
        tune.answers_per_second(address, ["caption"], tune.Load(1, warm=60.0), lambda: False)


def test_a_signal_ends_the_tuning() -> None:
    with answering() as (address, _), pytest.raises(ServerError, match="stopped while tuning"):
        tune.answers_per_second(address, ["caption"], tune.Load(1, warm=60.0), lambda: True)


def test_a_server_that_is_too_slow_is_told() -> None:
    load = tune.Load(clients=1, warm=0.05, window=0.1, longest=0.2)
    with answering(seconds=60.0) as (address, _), pytest.raises(ServerError, match=r"answered 0 times.*too few"):
        tune.answers_per_second(address, ["caption"], load, lambda: False)


def test_server_is_started_with_each_number_and_the_best_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[str] = []

    class Server:
        http_url, models = "127.0.0.1:1", ["caption"]

        def __init__(self, repository: str, options: command.Options) -> None:
            assert options.http_port == 0 and options.host == "127.0.0.1" and not options.allow_shared_memory

        def start(self, cancelled: object) -> None:
            served.append(os.environ["MPLUG_THREADS"])

        def kill(self) -> None:
            served.append("killed")

    monkeypatch.setenv("MPLUG_THREADS", "4")
    monkeypatch.setattr(command, "TritonServer", Server)
    rates = iter([2.0, 3.0, 1.0])
    monkeypatch.setattr(tune, "answers_per_second", lambda *_: next(rates))
    arguments = command._parse(["build/demo", "--tune-for", "16", "--host", "0.0.0.0", "--allow-shared-memory"])
    command._tune(arguments, Signals.__new__(Signals))
    assert served == ["4", "killed", "2", "killed", "1", "killed"] and os.environ["MPLUG_THREADS"] == "2"


@pytest.mark.parametrize("clients", ["0", "-1", "many", "2000"])
def test_clients_out_of_range_are_refused(clients: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command._parse(["build/demo", f"--tune-for={clients}"])
    assert "is not a number of clients, 1 to 1024" in capsys.readouterr().err
