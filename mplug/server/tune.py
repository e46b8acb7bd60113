"""Choose how many threads a stage has, for many clients, by measuring it: `--tune-for CLIENTS`.

With every core for each stage one client is served fastest. Many clients are often served better with fewer, so that
an encoder and the decoder run side by side; how many depends on the CPU and the model. So each number is tried: a
server with it answers a closed loop of clients for a while.
"""

from __future__ import annotations

import http.client
import io
import itertools
import json
import random
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image

from mplug.server.install import ServerError

#: Numbers of threads that are tried: all cores, half of them, and so on.
MOST_TRIED = 4
#: Fewer threads must be so many times better, since they make a single request slower.
LEAST_GAIN = 1.03
WARM_SECONDS, WINDOW_SECONDS = 8.0, 20.0
#: The window stays open until so many answers are in it, but not for ever.
LEAST_ANSWERS, LONGEST_SECONDS = 10, 120.0
REQUEST_SECONDS = 120.0
#: What is asked of a public model besides the picture; the first of these that the repository has is measured.
QUESTIONS: dict[str, dict[str, str]] = {
    "caption": {},
    "vqa": {"QUESTION": "what is in the picture?"},
    "embed_image": {},
}
PICTURE_SIZE = (480, 360)


@dataclass(frozen=True)
class Load:
    """A closed loop: each client sends its next request when it has the answer to the last."""

    clients: int
    warm: float = WARM_SECONDS  #: seconds before answers count
    window: float = WINDOW_SECONDS  #: seconds in which they are counted
    longest: float = LONGEST_SECONDS  #: seconds after which there must be enough of them


def candidates(cores: int) -> list[int]:
    """Return the numbers of threads to try, largest first."""
    halved = itertools.accumulate(range(MOST_TRIED - 1), lambda number, _: number // 2, initial=cores)
    return [number for number in halved if number > 0]


def choose(rates: Mapping[int, float]) -> int:
    """Return the threads with the best rate; more of them unless fewer gain enough."""
    return max(rates, key=lambda threads: (rates[threads] * LEAST_GAIN ** (threads == max(rates)), threads))


def tuned_threads(cores: int, load: Load, rate: Callable[[int], float]) -> int:
    """Return the best number of threads a stage; `rate` serves with one and returns answers per second."""
    rates = {}
    for threads in candidates(cores):
        rates[threads] = rate(threads)
        print(
            f"tuning for {load.clients} clients: {threads} thread{'s' if threads > 1 else ''} a stage, "
            f"{rates[threads]:.2f} answers a second",
            file=sys.stderr,
            flush=True,
        )
    return choose(rates)


def model_to_ask(models: list[str]) -> tuple[str, dict[str, str]]:
    """Return the public model that is measured, and its texts. Raises ServerError where there is none."""
    for task, texts in QUESTIONS.items():
        for model in models:
            if model == task or model.endswith(f"_{task}"):
                return model, texts
    raise ServerError(f"nothing to tune for: the repository serves none of {', '.join(QUESTIONS)}")


def answers_per_second(address: str, models: list[str], load: Load, stopped: Callable[[], bool]) -> float:
    """Ask the server at HOST:PORT in a closed loop and return its answers per second, between the first and the last.

    Clients whose request is in flight at the end are left waiting; they end with the server. Raises ServerError when a
    request fails, when nothing was answered, and when `stopped` says so.
    """
    model, texts = model_to_ask(models)
    answered: list[float] = []
    failures: list[str] = []
    over = threading.Event()
    number = itertools.count()

    def client() -> None:
        connection = http.client.HTTPConnection(address, timeout=REQUEST_SECONDS)
        while not over.is_set():
            try:
                ask(connection, model, {"IMAGE": noise(next(number)), **texts})
            except (OSError, http.client.HTTPException, ServerError) as error:
                failures.append(str(error) or type(error).__name__)
                return
            answered.append(time.monotonic())

    clients = [threading.Thread(target=client, daemon=True) for _ in range(load.clients)]
    began = time.monotonic()
    for each in clients:
        each.start()
    opened = began + load.warm
    while True:
        time.sleep(0.05)
        seconds, counted = time.monotonic() - opened, [at for at in answered if at >= opened]
        if failures or stopped():
            over.set()
            raise ServerError(f"tuning: {failures[0]}" if failures else "stopped while tuning")
        if seconds >= load.window and (len(counted) >= LEAST_ANSWERS or seconds >= load.longest):
            break
    over.set()
    if len(counted) < LEAST_ANSWERS:
        raise ServerError(f"tuning: {model} answered {len(counted)} times in {seconds:.0f} s: too few to compare")
    return (len(counted) - 1) / (counted[-1] - counted[0])


def noise(seed: int) -> bytes:
    """Return a JPEG of noise, another for each seed, so that no cache answers."""
    encoded = io.BytesIO()
    coarse = Image.frombytes("RGB", (48, 36), random.Random(seed).randbytes(48 * 36 * 3))
    coarse.resize(PICTURE_SIZE).save(encoded, "JPEG")
    return encoded.getvalue()


def ask(connection: http.client.HTTPConnection, model: str, inputs: Mapping[str, bytes | str]) -> None:
    """Send one request with tensors of one string each (KServe's HTTP, binary data). Raises ServerError if it fails."""
    tensors, data = [], b""
    for name, value in inputs.items():
        content = value.encode() if isinstance(value, str) else value
        element = struct.pack("<I", len(content)) + content
        sizes = {"binary_data_size": len(element)}
        tensors.append({"name": name, "shape": [1], "datatype": "BYTES", "parameters": sizes})
        data += element
    head = json.dumps({"inputs": tensors}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    connection.request("POST", f"/v2/models/{model}/infer", head + data, headers)
    response = connection.getresponse()
    body = response.read()
    if response.status != http.HTTPStatus.OK:
        raise ServerError(f"{model} answered {response.status}: {body[:200].decode(errors='replace')}")
