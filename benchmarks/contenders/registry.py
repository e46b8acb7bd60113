"""Who takes part in `one_caption`: each captions one picture at a time, all but the server in a process of its own.

Own processes, because two frameworks in one process fight over the cores: the threads of the one still spin,
waiting for more work, while the other computes.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from benchmarks.presets import BEAMS, CLS_ID, SEP_ID
from benchmarks.workspace import Workspace

#: Loading a framework and a model of base size on a busy machine.
START_SECONDS = 180.0


class Captioner(Protocol):
    """Answers with the ids of a caption of exactly `tokens` tokens, the start token first."""

    def caption(self, picture: bytes, tokens: int) -> list[int]: ...

    def close(self) -> None: ...


class ContenderError(RuntimeError):
    """A contender could not be started or failed; the message is its traceback."""


class OwnProcess:
    """A captioner in a process of its own, made there by `make`."""

    def __init__(self, make: Callable[[Workspace], Captioner], workspace: Workspace) -> None:
        # Spawned, not forked: a forked process inherits a broken copy of this one's threads.
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, workspace, other_end), daemon=True)
        self._process.start()
        other_end.close()
        self._receive(START_SECONDS)

    def caption(self, picture: bytes, tokens: int) -> list[int]:
        self._connection.send((picture, tokens))
        return self._receive(None)

    def close(self) -> None:
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def _receive(self, seconds: float | None) -> list[int]:
        try:
            if seconds is not None and not self._connection.poll(seconds):
                raise ContenderError(f"was not ready after {seconds:.0f} s")
            answer = self._connection.recv()
        except EOFError:
            raise ContenderError("its process has ended") from None
        if isinstance(answer, str):
            raise ContenderError(answer)
        return answer


def _serve(make: Callable[[Workspace], Captioner], workspace: Workspace, connection: Connection) -> None:
    """Runs in the contender's process until the other end is closed."""
    try:
        captioner = make(workspace)
        connection.send([])
        while True:
            connection.send(captioner.caption(*connection.recv()))
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException:
        connection.send(traceback.format_exc())


def through_triton(url: str) -> Captioner:
    """Ours, over gRPC to a running server."""
    from clients.client import Client

    class ThroughTriton:
        def __init__(self) -> None:
            self._client = Client(url, timeout=600.0)

        def caption(self, picture: bytes, tokens: int) -> list[int]:
            best = self._client.caption(picture, num_beams=BEAMS, min_length=tokens, max_length=tokens)[0]
            return best.token_ids

        def close(self) -> None:
            self._client.close()

    return ThroughTriton()


# Imports are inside: each process loads the one framework that it needs.


def in_process(workspace: Workspace) -> Captioner:
    """Ours without Triton."""
    from benchmarks.contenders.in_process import InProcess

    return InProcess(workspace.repository)


def blip(workspace: Workspace) -> Captioner:
    """BLIP of `transformers`, bf16."""
    from benchmarks.contenders.blip import Blip

    class One:
        def __init__(self) -> None:
            self._model = Blip(workspace.preset.sizes)

        def caption(self, picture: bytes, tokens: int) -> list[int]:
            return self._model.generate([self._model.pixels(picture)], tokens)[0].tolist()

        def close(self) -> None:
            pass

    return One()


def uncached(workspace: Workspace) -> Captioner:
    """Our PyTorch network without a key-value cache, as published."""
    from benchmarks.contenders.uncached import Uncached
    from mplug.checkpoint import load_checkpoint
    from mplug.decoding.beam_search import SearchOptions
    from mplug.inputs.images import decode_image, pixel_values

    network, _ = load_checkpoint(workspace.checkpoint)
    size, penalty = network.config.vision.image_size, network.config.generation.length_penalty

    class One:
        def __init__(self) -> None:
            self._model = Uncached(network, CLS_ID)

        def caption(self, picture: bytes, tokens: int) -> list[int]:
            options = SearchOptions(BEAMS, tokens, tokens, 1, penalty, SEP_ID)
            found = self._model.caption(pixel_values(decode_image(picture), size), options)
            return [CLS_ID, *found[0].token_ids]

        def close(self) -> None:
            pass

    return One()
