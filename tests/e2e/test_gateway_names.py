"""A gateway that is given one name for all servers follows what DNS says: a server is replaced by one elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from launcher import launched
from test_gateway import CHECKOUT, CONFIG, MODEL, envoy, free_ports, x_input

NAME_SERVER = "127.0.53.53"
HOSTS = ("127.0.53.2", "127.0.53.3", "127.0.53.4")  # as if of three machines
NAME = "servers.example"


class Names:
    """A name server that knows one name, with the addresses that the test gives it."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((NAME_SERVER, 53))
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                query, client = self._socket.recvfrom(2048)
            except OSError:  # closed
                return
            end = query.index(b"\0", 12) + 5  # of the question: the name, its type and class
            is_ours = NAME.split(".")[0].encode() in query and query[end - 3] == 1  # type A
            found = [
                b"\xc0\x0c\0\1\0\1" + (5).to_bytes(4, "big") + b"\0\4" + socket.inet_aton(address)
                for address in (self.addresses if is_ours else [])
            ]
            self.asked += is_ours
            counts = b"\0\1" + len(found).to_bytes(2, "big") + bytes(4)
            self._socket.sendto(query[:2] + b"\x85\x80" + counts + query[12:end] + b"".join(found), client)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def names() -> Iterator[Names]:
    try:
        found = Names()
    except OSError as error:
        pytest.skip(f"{NAME_SERVER}:53 cannot be bound: {error}")
    yield found
    found.close()


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="another resolv.conf takes a mount namespace, and root"
)
def test_servers_are_replaced_by_others_without_a_request_lost(tmp_path: Path, write_model, names: Names) -> None:
    command = envoy()
    write_model(tmp_path / "repository", "caption", CONFIG, MODEL)
    http_port, grpc_port, metrics_port, health_port, gateway_http, gateway_grpc = free_ports(6)
    ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port, "health": health_port}
    (tmp_path / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\n")
    answers = {triton_grpc: 0, triton_http: 0}
    failures: list[str] = []
    stopped = threading.Event()

    def ask(module: object, port: int) -> None:
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while not stopped.is_set():
                try:
                    assert client.infer("caption", [x_input(module)]).as_numpy("Y").tolist() == [6]
                    answers[module] += 1
                    time.sleep(0.01)
                except Exception as error:
                    failures.append(str(error))

    with ExitStack() as stack:

        def start(host: str) -> object:
            flags = [f"--{name}-port={port}" for name, port in ports.items()]
            server = launched(tmp_path / "repository", f"--host={host}", *flags, "--lame-duck=3")
            return stack.enter_context(server)

        old, other = start(HOSTS[0]), start(HOSTS[1])
        for server in (old, other):
            server.wait_ready()
        names.addresses = list(HOSTS[:2])
        run = [sys.executable, "deploy/gateway/run.py", "--envoy", *command]
        run += ["--server", f"{NAME}:{http_port}:{grpc_port}:{health_port}"]
        run += [f"--http-port={gateway_http}", f"--grpc-port={gateway_grpc}"]
        script = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
        gateway = subprocess.Popen(["unshare", "--mount", "sh", "-c", script, "sh", *run], cwd=CHECKOUT)
        stack.callback(gateway.wait)
        stack.callback(gateway.kill)
        _wait_ready(gateway, gateway_http)
        threads = [
            threading.Thread(target=ask, args=(module, port))
            for module, port in ((triton_http, gateway_http), (triton_grpc, gateway_grpc))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        start(HOSTS[2]).wait_ready()
        names.addresses = list(HOSTS[1:])
        code, errors = old.end(signal.SIGTERM)
        asked = names.asked
        while names.asked < asked + 2:  # both of Envoy's clusters, HTTP and gRPC, have asked again
            time.sleep(0.05)
        code_of_other, errors_of_other = other.end(signal.SIGTERM)  # the new one alone is left
        before = dict(answers)
        deadline = time.monotonic() + 20
        while any(answers[module] < before[module] + 20 for module in answers) and not failures:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stopped.set()
        for thread in threads:
            thread.join(60)
        gateway.terminate()
        assert gateway.wait(60) == 0
    assert (code, code_of_other) == (0, 0), errors + errors_of_other
    assert failures == [] and min(answers.values()) > 50


def _wait_ready(gateway: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    with triton_http.InferenceServerClient(f"127.0.0.1:{port}") as client:
        while True:
            assert gateway.poll() is None and time.monotonic() < deadline
            try:
                if client.is_server_ready():
                    return
            except OSError:
                pass
            time.sleep(0.05)
