"""The client against a real server: every public model, blocking and with asyncio, over gRPC and HTTP, with and
without shared memory; and what the server keeps of a client that has gone."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import client_files
import numpy as np
import pytest
import tritonclient.grpc
from wire import PROTOCOLS

from clients.client import ENTAILMENT_LABELS, AsyncClient, Client, ClientError, shared_memory, shared_memory_key
from mplug.server.command import TritonServer

CHECKOUT = Path(__file__).resolve().parents[2]
TEXTS = ["a red apple to the left of a dog", "a wolf"]


def png(seed: int, size: tuple[int, int] = (80, 60)) -> bytes:
    buffer = io.BytesIO()
    client_files.noise(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def large(seed: int) -> bytes:
    """Larger than what travels in the request where memory is shared."""
    encoded = png(seed, (400, 300))
    assert len(encoded) > shared_memory.SHARED_FROM
    return encoded


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    client_files.film(path)
    return path


def url_of(server: TritonServer, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


def questions(clip: Path) -> dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Every public model, in every way of asking it: method, arguments."""
    one, two, three = large(1), png(2), png(3)
    return {
        "caption": ("caption", (one,), {"num_beams": 2, "num_return": 2, "max_length": 8}),
        "prompted": ("caption", (one, "how many dogs"), {"num_beams": 1, "max_length": 8}),
        "frames": ("caption", ([one, two, three],), {"frames": 2, "num_beams": 1, "max_length": 8}),
        "video": ("caption", (), {"video": clip, "frames": 3, "num_beams": 1, "max_length": 8}),
        "answer": ("vqa", (one, "what is it"), {"num_beams": 2}),
        "ranked": ("vqa", (one, "what is it", ["a dog", "red", "two"]), {}),
        "with words": ("vqa", (one, "what is it"), {"ocr": ["stop"], "objects": ["dog", "wolf"], "num_beams": 1}),
        "of a video": ("vqa", (), {"video": clip, "question": "what moves", "frames": 2, "num_beams": 1}),
        "picture": ("embed_image", (one,), {}),
        "moving": ("embed_image", ([one, two],), {}),
        "text": ("embed_text", (TEXTS[0],), {}),
        "match": ("match", (one, TEXTS), {}),
        "box": ("ground", (one, "the dog"), {}),
        "pair": ("nlvr", ((one, two), "both show a dog"), {}),
        "hypothesis": ("entail", (one, "a dog"), {}),
    }


@pytest.fixture(scope="module")
def wanted(every_task_server: TritonServer, clip: Path) -> dict[str, Any]:
    """All answers, by the plainest of the clients."""
    with Client(every_task_server.grpc_url) as client:
        return {
            name: getattr(client, method)(*arguments, **options)
            for name, (method, arguments, options) in questions(clip).items()
        }


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, answer in wanted.items():
        if isinstance(answer, np.ndarray):
            np.testing.assert_allclose(found[name], answer, atol=1e-5)
        elif isinstance(answer, list):
            assert len(found[name]) == len(answer)
            assert [vars(each).keys() for each in found[name]] == [vars(each).keys() for each in answer]
            for one, other in zip(found[name], answer, strict=True):
                assert getattr(one, "text", None) == getattr(other, "text", None)
                assert one.score == pytest.approx(other.score, abs=1e-4)
        else:
            assert vars(found[name]) == {
                key: pytest.approx(value, abs=1e-4) if key.startswith("prob") else value
                for key, value in vars(answer).items()
            }


def test_answers_are_of_the_right_kind(wanted: dict[str, Any]) -> None:
    assert len(wanted["caption"]) == 2 and wanted["caption"][0].score >= wanted["caption"][1].score
    assert wanted["prompted"] != wanted["caption"][:1]
    assert sum(answer.score for answer in wanted["ranked"]) == pytest.approx(1, abs=1e-5)
    assert {answer.text for answer in wanted["ranked"]} == {"a dog", "red", "two"}
    assert np.linalg.norm(wanted["picture"]) == pytest.approx(1, abs=1e-5)
    assert wanted["match"][0].similarity == pytest.approx(float(wanted["picture"] @ wanted["text"]), abs=1e-4)
    assert wanted["with words"][0].score != wanted["answer"][0].score
    left, top, right, bottom = wanted["box"].box
    assert 0 <= left <= right <= 400 and 0 <= top <= bottom <= 300
    assert wanted["pair"].label in ("true", "false") and 0.5 <= wanted["pair"].probability <= 1
    assert wanted["hypothesis"].label == ENTAILMENT_LABELS[int(np.argmax(wanted["hypothesis"].probabilities))]


@pytest.mark.parametrize("shared", [False, True], ids=["sent", "shared"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_model_blocking(
    every_task_server: TritonServer, clip: Path, wanted: dict[str, Any], protocol: str, shared: bool
) -> None:
    with Client(url_of(every_task_server, protocol), protocol, shared_memory=shared) as client:
        assert_same(
            {
                name: getattr(client, method)(*arguments, **options)
                for name, (method, arguments, options) in questions(clip).items()
            },
            wanted,
        )


@pytest.mark.parametrize("shared", [False, True], ids=["sent", "shared"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_model_at_once(
    every_task_server: TritonServer, clip: Path, wanted: dict[str, Any], protocol: str, shared: bool
) -> None:
    async def ask() -> dict[str, Any]:
        async with AsyncClient(url_of(every_task_server, protocol), protocol, shared_memory=shared) as client:
            asked = questions(clip)
            calls = (getattr(client, method)(*arguments, **options) for method, arguments, options in asked.values())
            return dict(zip(asked, await asyncio.gather(*calls), strict=True))

    assert_same(asyncio.run(ask()), wanted)


def test_a_checkpoint_among_several(several_server: TritonServer) -> None:
    image = png(4)
    with Client(several_server.grpc_url) as first, Client(several_server.grpc_url, checkpoint="again") as second:
        assert first.caption(image, num_beams=2) == second.caption(image, num_beams=2)
        assert first.is_ready("vqa") and second.is_ready("caption") and not second.is_ready("vqa")
        with pytest.raises(ClientError, match=r"again_vqa .*answered NOT_FOUND"):
            second.vqa(image, "w1")


# ---------------------------------------------------------------------------------------- shared memory


def key(server: TritonServer) -> dict[str, str]:
    """What opens the shared-memory API over gRPC."""
    return shared_memory_key.headers("grpc", int(server.grpc_url.rpartition(":")[2]), None)


@pytest.fixture
def regions(every_task_server: TritonServer) -> Iterator[Callable[[], list[str]]]:
    """The names of the regions that the server has mapped; all of them are gone again before and after the test."""
    client = tritonclient.grpc.InferenceServerClient(every_task_server.grpc_url)

    def names() -> list[str]:
        return list(
            client.get_system_shared_memory_status(headers=key(every_task_server), as_json=True).get("regions", {})
        )

    assert names() == []
    yield names
    assert names() == []
    client.close()


def files(pid: int | None = None) -> list[str]:
    """Names of a client's regions, by default of one in this process."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"mplug-client-{pid or os.getpid()}-")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_blocking_client_cleans_up(
    every_task_server: TritonServer, regions: Callable[[], list[str]], protocol: str
) -> None:
    url = url_of(every_task_server, protocol)
    with Client(url, protocol, shared_memory=True) as client:
        client.embed_image(png(5))
        assert regions() == []  # so small an image travels in the request
        for seed in range(3):
            client.embed_image(large(10 + seed))
        assert len(regions()) == 1 and files() == []
        with pytest.raises(ClientError, match="IMAGE is not an image"):
            client.embed_image(b"x" * 200_000)
        client.embed_image(large(14))
        assert len(regions()) == 1
    assert regions() == []
    forgotten = Client(url, protocol, shared_memory=True)
    forgotten.embed_image(large(15))
    del forgotten


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_with_asyncio_cleans_up(
    every_task_server: TritonServer, regions: Callable[[], list[str]], protocol: str
) -> None:
    async def ask() -> None:
        async with AsyncClient(url_of(every_task_server, protocol), protocol, shared_memory=True) as client:
            await asyncio.gather(*(client.embed_image(large(20 + seed)) for seed in range(6)))
            assert len(regions()) <= shared_memory.MAX_REGIONS and files() == []
            sent, triton = asyncio.Event(), client._connection._client
            infer = triton.infer

            async def tell(*arguments: Any, **options: Any) -> Any:
                sent.set()
                return await infer(*arguments, **options)

            triton.infer = tell
            asked = asyncio.create_task(client.embed_image([large(30 + seed) for seed in range(4)]))
            await sent.wait()  # its region is registered, and the request on its way
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert await client.embed_text("a dog") is not None

    asyncio.run(ask())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_does_not_wait_cleans_up(
    every_task_server: TritonServer, regions: Callable[[], list[str]], protocol: str
) -> None:
    """The server reads a region while its client has given up: it is asked again to forget it."""
    frames = [large(40 + seed) for seed in range(16)]  # no server decodes so many within the time
    with (
        Client(url_of(every_task_server, protocol), protocol, timeout=0.02, shared_memory=True) as client,
        pytest.raises(ClientError, match=r"no answer from .* within 0\.02 s") as caught,
    ):
        client.embed_image(frames)
    assert caught.value.status == "DEADLINE_EXCEEDED"


def test_a_server_that_forgot_is_told_again(every_task_server: TritonServer, regions: Callable[[], list[str]]) -> None:
    """As after it was started again."""
    admin = tritonclient.grpc.InferenceServerClient(every_task_server.grpc_url)
    with Client(every_task_server.grpc_url, shared_memory=True) as client:
        first = client.embed_image(large(50))
        for name in regions():
            admin.unregister_system_shared_memory(name, headers=key(every_task_server))
        np.testing.assert_array_equal(client.embed_image(large(50)), first)
    admin.close()


def test_a_killed_client_leaves_no_file(every_task_server: TritonServer) -> None:
    program = (
        "import sys, time; from clients.client import Client\n"
        "client = Client(sys.argv[1], shared_memory=True)\n"
        "client.embed_image(sys.argv[2]); print('asked', flush=True); time.sleep(60)"
    )
    admin = tritonclient.grpc.InferenceServerClient(every_task_server.grpc_url)
    picture = CHECKOUT / "examples" / "scene-03.jpg"
    data = picture.read_bytes()
    padded = Path(os.environ.get("TMPDIR", "/tmp")) / f"padded-{os.getpid()}.jpg"
    padded.write_bytes(data + bytes(shared_memory.SHARED_FROM))  # what follows a JPEG's end is not looked at
    process = subprocess.Popen(
        [sys.executable, "-c", program, every_task_server.grpc_url, padded],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert files(process.pid) == []
        found = admin.get_system_shared_memory_status(headers=key(every_task_server), as_json=True)
        assert len(found["regions"]) == 1  # as the module says
    finally:
        process.kill()
        process.wait()
        padded.unlink()
        found = admin.get_system_shared_memory_status(headers=key(every_task_server), as_json=True)
        for name in found.get("regions", {}):
            admin.unregister_system_shared_memory(name, headers=key(every_task_server))
        admin.close()


def test_memory_of_another_host_is_told(every_task_server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host has no such key; here the key is another one."""
    real = shared_memory.Regions.create

    def create(size: int) -> shared_memory.Region:
        region = real(size)
        region.key += "-elsewhere"
        return region

    monkeypatch.setattr(shared_memory.Regions, "create", staticmethod(create))
    for protocol in PROTOCOLS:
        with (
            Client(url_of(every_task_server, protocol), protocol, shared_memory=True) as client,
            pytest.raises(ClientError, match="it must be on this host") as caught,
        ):
            client.embed_image(large(60))
        assert caught.value.status == "FAILED_PRECONDITION" and "\n" not in str(caught.value)
    assert files() == []
