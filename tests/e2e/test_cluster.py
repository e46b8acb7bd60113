"""`make cluster`: servers behind the gateway, replaced and drained one after the other without a request lost."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from launcher import wait_gone
from test_gateway import CHECKOUT, CONFIG, MODEL, envoy, free_ports, x_input


def test_a_cluster_loses_nothing_while_its_servers_are_replaced_and_drained(tmp_path: Path, write_model) -> None:
    command = envoy()
    write_model(tmp_path, "caption", CONFIG, MODEL)
    http_port, grpc_port = free_ports(2)
    ports = [f"--http-port={http_port}", f"--grpc-port={grpc_port}"]
    process = subprocess.Popen(
        [sys.executable, "deploy/gateway/cluster.py", tmp_path, "--servers=2", f"--envoy={command[0]}", *ports],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    answers: list[list[float]] = []
    failures: list[str] = []
    stopped = threading.Event()

    def ask(module: object, port: int) -> None:
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while not stopped.is_set():
                try:
                    answers.append(client.infer("caption", [x_input(module)]).as_numpy("Y").tolist())
                except Exception as error:
                    failures.append(str(error))

    try:
        line = process.stdout.readline()
        assert line.startswith("ready: 2 servers"), line
        servers = [int(pid) for pid in re.search(r"processes (.*)", line)[1].split()]
        threads = [
            threading.Thread(target=ask, args=(module, port))
            for module, port in ((triton_http, http_port), (triton_grpc, grpc_port))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        process.send_signal(signal.SIGHUP)
        assert [process.stdout.readline() for _ in range(2)] == [f"server {n} is replaced\n" for n in (1, 2)]
        wait_gone(servers)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "server 1 is drained\n"
        stopped.set()  # before the last one goes
        for thread in threads:
            thread.join(60)
        assert process.stdout.readline() == "server 2 is drained\n"
        assert process.wait(60) == 0
    finally:
        stopped.set()
        if process.poll() is None:
            process.terminate()
            process.wait(90)
    assert failures == []
    assert len(answers) > 100 and all(answer == [6] for answer in answers)
