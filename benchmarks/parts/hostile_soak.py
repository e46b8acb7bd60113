"""Ten thousand hostile and good requests, through the gateway and on the bare server: each answered once, memory flat.

    python -m benchmarks.parts.hostile_soak --repository DIR --envoy ENVOY [--requests 10000] [--page FILE]

Good requests must be answered right; each hostile kind must be refused with a 4xx status, through the gateway also
those that end a bare tritonserver. The bare server gets all but these. Exit code 1 if a request is answered otherwise
or not at all, or if memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.measure.figures import growth
from benchmarks.measure.mixed_requests import soak_pictures
from benchmarks.measure.processes import group_memory
from benchmarks.measure.ready import free_port, is_ready, wait_until
from benchmarks.page import write_section
from deploy.gateway.configuration import Gateway, Server
from deploy.gateway.run import find_envoy, start, write
from mplug.server.health import READY, HealthPort
from mplug.server.process import TritonServer

PICTURES = 24
CLIENTS = 16
SEED = 11
ANSWER_SECONDS = 120.0  # an answer that takes longer is lost
SAMPLE_SECONDS = 1.0
WARM_SHARE = 0.5  # of the samples: every shape of batch is planned once, and the response cache fills
FLAT = 0.05
HOSTILE = range(400, 500)


@dataclass(frozen=True)
class Kind:
    """One kind of request: `body` makes it from a random generator; `ends` says that it ends a bare server."""

    name: str
    weight: int
    path: str
    body: Callable[[random.Random], Any]
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"
    good: bool = False
    ends: bool = False


def _uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def kinds(pictures: list[bytes]) -> list[Kind]:
    """Return every kind of request with its share."""

    def caption(generator: random.Random) -> bytes:
        picture = _uri(generator.choice(pictures))
        return json.dumps({"IMAGE": picture, "NUM_BEAMS": generator.choice((1, 2)), "MAX_LENGTH": 12}).encode()

    def question(generator: random.Random) -> bytes:
        return json.dumps({"IMAGE": _uri(generator.choice(pictures)), "QUESTION": "what is this?"}).encode()

    def text(generator: random.Random) -> bytes:
        return json.dumps({"TEXT": f"{generator.choice(('a', 'two'))} dogs {generator.randrange(50)}"}).encode()

    def changed(**changes: object) -> Callable[[random.Random], bytes]:
        return lambda generator: json.dumps(json.loads(caption(generator)) | changes).encode()

    def torn(generator: random.Random) -> bytes:
        picture = generator.choice(pictures)
        return json.dumps({"IMAGE": _uri(picture[: generator.randrange(1, len(picture) // 2)])}).encode()

    def flipped(generator: random.Random) -> bytes:
        """Bytes in the head of a picture turned around: no picture any more."""
        picture = bytearray(generator.choice(pictures))
        for index in range(12, 24):
            picture[index] ^= 0xFF
        return json.dumps({"IMAGE": _uri(bytes(picture))}).encode()

    def chunks(piece: bytes, count: int) -> Callable[[random.Random], Any]:
        async def pieces():
            for _ in range(count):
                yield piece

        return lambda _: pieces()

    def constant(value: bytes) -> Callable[[random.Random], bytes]:
        return lambda _: value

    caption_path, ends = "/v2/models/caption/generate", {"ends": True}
    huge = b"P6\n60000 60000\n255\n" + bytes(1000)
    return [
        Kind("good: caption", 220, caption_path, caption, good=True),
        Kind("good: question", 120, "/v2/models/vqa/generate", question, good=True),
        Kind("good: text embedding", 260, "/v2/models/embed_text/generate", text, good=True),
        Kind("torn picture", 60, caption_path, torn),
        Kind("damaged picture", 60, caption_path, flipped),
        Kind("no picture", 40, caption_path, changed(IMAGE="hello")),
        Kind("picture of 3.6 gigapixels", 20, caption_path, changed(IMAGE=_uri(huge))),
        Kind("URL for a picture", 20, caption_path, changed(IMAGE="http://127.0.0.1:1/a.png")),
        Kind("option out of range", 60, caption_path, changed(NUM_BEAMS=1000)),
        Kind("prompt of 100,000 words", 20, caption_path, changed(PROMPT="dog " * 100_000)),
        Kind("no such model", 20, "/v2/models/absent/generate", constant(b"{}")),
        Kind("path out of the models", 20, "/v2/models/caption%2f..%2f..%2flogging", constant(b"{}")),
        Kind("admin API", 40, "/v2/logging", constant(b'{"log_verbose_level": 9}')),
        Kind("shared memory", 20, "/v2/systemsharedmemory/region/a/register", constant(b'{"key":"/a","byte_size":8}')),
        Kind("million brackets", 10, caption_path, constant(b"[" * 1_000_000), **ends),
        Kind("200,000 nested objects", 10, caption_path, constant(b'{"a":' * 200_000), **ends),
        Kind(
            "gzip of 100 MB",
            10,
            caption_path,
            constant(gzip.compress(bytes(100 << 20))),
            (("Content-Encoding", "gzip"),),
            **ends,
        ),
        Kind("20,000 one-byte chunks", 4, caption_path, chunks(b"[", 20_000), **ends),
        Kind("65 MiB", 1, caption_path, chunks(bytes(1 << 20), 65), **ends),
    ]


async def _ask(session: aiohttp.ClientSession, url: str, kind: Kind, generator: random.Random) -> tuple[int, bytes]:
    async with session.request(
        kind.method,
        aiohttp.client.URL(url + kind.path, encoded=True),
        data=kind.body(generator),
        headers=dict(kind.headers),
    ) as response:
        return response.status, await response.read()


async def _load(url: str, chosen: list[Kind], watch: Callable[[], float]) -> dict[str, Any]:
    """Send every request; outcomes by kind, and samples of memory."""
    outcomes: dict[str, Counter[str]] = {}
    samples: list[float] = []
    answers: dict[str, bytes] = {}
    left = list(reversed(list(enumerate(chosen))))
    done = asyncio.Event()

    async def client(session: aiohttp.ClientSession) -> None:
        while left:
            index, kind = left.pop()
            # Of a good request there are some hundred different ones, so that the same comes again.
            generator = random.Random(index % 300 if kind.good else index)
            counts = outcomes.setdefault(kind.name, Counter())
            try:
                status, body = await asyncio.wait_for(_ask(session, url, kind, generator), ANSWER_SECONDS)
            except TimeoutError:
                counts["lost"] += 1
                continue
            except aiohttp.ClientError as error:
                # Whoever sends more than is taken is cut off: an answer that a client may not be able to read.
                cut_off = kind.name == "65 MiB" and isinstance(
                    error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError
                )
                counts["refused" if cut_off else f"connection: {type(error).__name__}"] += 1
                continue
            if kind.good:
                same = status == 200 and answers.setdefault(f"{kind.name} {index % 300}", _rounded(body)) == _rounded(
                    body
                )
                counts["right" if same else f"wrong: {status}"] += 1
            else:
                counts["refused" if status in HOSTILE else f"answered {status}"] += 1

    async def sample() -> None:
        while not done.is_set():
            samples.append(await asyncio.to_thread(watch))
            await asyncio.sleep(SAMPLE_SECONDS)

    sampling = asyncio.create_task(sample())
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    done.set()
    await sampling
    return {"outcomes": {name: dict(counts) for name, counts in outcomes.items()}, "memory": samples}


def _rounded(body: bytes) -> bytes:
    """An answer without the last digits of its numbers, which may depend on the batch."""

    def rounded(value: object) -> object:
        if isinstance(value, float):
            return round(value, 2)
        return [rounded(one) for one in value] if isinstance(value, list) else value

    return json.dumps({key: rounded(value) for key, value in json.loads(body).items()}).encode()


def measure(repository: Path, envoy: Sequence[str], requests: int) -> dict[str, Any]:
    """Run both loads on one server each and return what came back."""
    generator = random.Random(SEED)
    every = kinds(soak_pictures(PICTURES))
    results: dict[str, Any] = {}
    for place in ("gateway", "bare server"):
        those = [kind for kind in every if place == "gateway" or not kind.ends]
        chosen = generator.choices(those, [kind.weight for kind in those], k=requests)
        with (
            TritonServer(repository) as server,
            tempfile.TemporaryDirectory() as folder,
            HealthPort("127.0.0.1", 0) as health,
        ):
            health.state = READY
            url, process = f"http://{server.http_url}", None
            if place == "gateway":
                url, process = _open_gateway(server, health.port, envoy, Path(folder))
            try:
                began = time.monotonic()
                found = asyncio.run(_load(url, chosen, lambda: sum(group_memory(server.pid).values())))
                found["seconds"] = round(time.monotonic() - began, 1)
                found["fault"] = server.fault()
                found["growth"] = round(growth(found["memory"], WARM_SHARE), 4)
                results[place] = found
            finally:
                if process is not None:
                    process.terminate()
                    process.wait()
    return results


def _open_gateway(server: TritonServer, health_port: int, envoy: Sequence[str], folder: Path):
    ports = [int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url)]
    made = Gateway((Server("127.0.0.1", *ports, health_port),), http_port=free_port(), grpc_port=free_port())
    write(made, folder / "envoy.json")
    process = start(envoy, folder / "envoy.json", concurrency=1)
    wait_until(lambda: is_ready(made.http_port, "/v2/health/ready"))
    return f"http://127.0.0.1:{made.http_port}", process


def failures(results: dict[str, Any]) -> list[str]:
    """One line for each thing that is not as it should be."""
    found = []
    for place, result in results.items():
        for kind, counts in result["outcomes"].items():
            found += [
                f"{place}, {kind}: {count} x {what}"
                for what, count in counts.items()
                if what not in ("right", "refused")
            ]
        if result["fault"]:
            found.append(f"{place}: {result['fault']}")
        if result["growth"] > FLAT:
            found.append(f"{place}: memory grew by {result['growth']:.1%} in the second half")
    return found


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| requests | through the gateway | on the bare server |", "| --- | --- | --- |"]
    names = list(results["gateway"]["outcomes"] | results["bare server"]["outcomes"])
    order = [kind.name for kind in kinds([bytes(100)])]
    for name in sorted(names, key=order.index):
        cells = []
        for result in results.values():
            counts = result["outcomes"].get(name)
            cells.append(
                ", ".join(f"{count} {what}" for what, count in counts.items()) if counts else "not sent: ends it"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    ends = [
        f"{sum(sum(counts.values()) for counts in result['outcomes'].values())} in {result['seconds']:.0f} s, "
        f"memory {result['growth']:+.1%}"
        for result in results.values()
    ]
    return "\n".join([*lines, f"| all; growth of resident memory in the second half | {' | '.join(ends)} |"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        description="Hostile and good requests, through the gateway and on the bare server."
    )
    parser.add_argument("--repository", type=Path, default=Path("build/demo"))
    parser.add_argument("--envoy")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--page", type=Path, help="Markdown file whose section `soak` is rewritten")
    arguments = parser.parse_args(argv)
    results = measure(arguments.repository, find_envoy(arguments.envoy), arguments.requests)
    print(table(results))
    if arguments.page:
        write_section(arguments.page, "soak", table(results))
    bad = failures(results)
    for line in bad:
        print(f"not as it should be: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
