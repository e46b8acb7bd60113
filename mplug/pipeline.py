"""A built repository in one process, without Triton.

    from mplug.pipeline import Pipeline

    with Pipeline.open("build/demo") as mplug:
        print(mplug.caption("photo.jpg")[0].text)

Tasks, tokenizer, compiled stages, batching, decode loop and errors are those of the server; only Triton is left
out. Requests of several threads, or of one thread through `submit` or `map`, share batches and decoder steps.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from mplug.answers import Entailment, Generated, Grounding, Match, Verdict
from mplug.contract import DECODER, ENCODERS, STAGES_FILE, Value, Values, read_stages
from mplug.decoding.service import DecoderService
from mplug.errors import NotServed, StageError, Unavailable
from mplug.runtime import Decoder, open_graph
from mplug.runtime.batch import BatchingStage
from mplug.runtime.state_cache import StateCache
from mplug.tasks.checkpoint_files import SERVED_FILE
from mplug.tasks.interface import Task
from mplug.tasks.table import open_task

#: A picture: encoded bytes, a path to a file, or an image in memory.
Picture = bytes | str | os.PathLike[str] | Image.Image
#: A video: encoded bytes or a path to a file.
Video = bytes | str | os.PathLike[str]
#: Runs a named piece of work ("parse" or a stage); benchmarks hand in one that takes the time.
Timer = Callable[[str, Callable[[], Any]], Any]

BUILD_INFO = "build_info.json"  # `builders/build.py` writes it last
CACHE_MB = 256  # states of pictures, as on the server
CONCURRENCY = 64  # requests of `map` in flight
# What PNG stores as it is; images of other modes are sent as RGB.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


class RepositoryError(ValueError):
    """The folder is not a complete repository; the message says what to do."""


class Pipeline:
    """The public models of a repository that `builders/build.py` made. Any thread may call it."""

    def __init__(
        self,
        repository: Path,
        *,
        cache_mb: int = CACHE_MB,
        timer: Timer = lambda name, call: call(),
        wrap_decoder: Callable[[Decoder], Decoder] = lambda decoder: decoder,
    ) -> None:
        """Use `Pipeline.open`, which takes the same arguments."""
        self._repository, self._timer, self._wrap_decoder = repository, timer, wrap_decoder
        self.models = tuple(sorted(path.parents[1].name for path in repository.glob(f"*/1/{SERVED_FILE}")))
        self._tasks: dict[str, Task] = {}
        self._stage_names: dict[str, dict[str, str]] = {}
        self._stages: dict[str, BatchingStage] = {}
        self._decoders: dict[str, DecoderService] = {}
        self._states = StateCache(cache_mb << 20)
        self._parsers = ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="parse")
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="stages")
        self._opening = threading.Lock()
        self._closed = False
        self._events = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._events.run_forever, name="pipeline", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, repository: str | os.PathLike[str], **options: Any) -> Pipeline:
        """Open a built repository; its stages are loaded on first use.

        Options: `cache_mb`, megabytes of image states that are kept (default 256). Raises RepositoryError.
        """
        folder = Path(repository)
        if not (folder / BUILD_INFO).is_file():
            raise RepositoryError(
                f"{folder} is not a built repository (it has no {BUILD_INFO}); make one: "
                f"python builders/build.py CHECKPOINT --output {folder}"
            )
        return cls(folder, **options)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # The tasks. Arguments are those of `clients.client.Client`; options of a search: num_beams, min_length,
    # max_length, num_return, length_penalty.

    def caption(
        self,
        image: Picture | Sequence[Picture] | None = None,
        prompt: str | None = None,
        *,
        video: Video | None = None,
        frames: int | None = None,
        **search: float,
    ) -> list[Generated]:
        """Return captions of a picture, of several frames or of a video, best first."""
        inputs = _visual(image, video, frames) | _search(search)
        if prompt is not None:
            inputs["PROMPT"] = [prompt.encode()]
        return Generated.read(self.infer("caption", inputs), "CAPTION")

    def vqa(
        self,
        image: Picture | Sequence[Picture] | None = None,
        question: str = "",
        candidates: Sequence[str] | None = None,
        *,
        ocr: Sequence[str] | None = None,
        objects: Sequence[str] | None = None,
        video: Video | None = None,
        frames: int | None = None,
        **search: float,
    ) -> list[Generated]:
        """Return answers to a question, best first: written freely, or the given candidates ranked."""
        inputs = _visual(image, video, frames) | _search(search) | {"QUESTION": [question.encode()]}
        for name, texts in (("CANDIDATES", candidates), ("OCR", ocr), ("OBJECTS", objects)):
            if texts is not None:
                inputs[name] = [text.encode() for text in texts]
        return Generated.read(self.infer("vqa", inputs), "ANSWER")

    def embed_image(
        self,
        image: Picture | Sequence[Picture] | None = None,
        *,
        video: Video | None = None,
        frames: int | None = None,
    ) -> np.ndarray:
        """Return the unit vector `[E]` of a picture or a video."""
        return self.infer("embed_image", _visual(image, video, frames))["FEATURE"]

    def embed_text(self, text: str) -> np.ndarray:
        """Return the unit vector `[E]` of a text."""
        return self.infer("embed_text", {"TEXT": [text.encode()]})["FEATURE"]

    def match(
        self,
        image: Picture | Sequence[Picture] | None = None,
        texts: Sequence[str] = (),
        *,
        video: Video | None = None,
        frames: int | None = None,
    ) -> list[Match]:
        """Return how well each text fits the picture or the video, in the order of `texts`."""
        inputs = _visual(image, video, frames) | {"TEXT": [text.encode() for text in texts]}
        return Match.read(self.infer("match", inputs))

    def ground(self, image: Picture, expression: str) -> Grounding:
        """Return the box of what the expression describes, in pixels of the picture."""
        inputs = {"IMAGE": [encoded(image)], "EXPRESSION": [expression.encode()]}
        return Grounding.read(self.infer("ground", inputs))

    def nlvr(self, images: tuple[Picture, Picture], statement: str) -> Verdict:
        """Return whether a statement is true of two pictures."""
        inputs = {"IMAGE": [encoded(image) for image in images], "STATEMENT": [statement.encode()]}
        return Verdict.read(self.infer("nlvr", inputs))

    def entail(self, image: Picture, hypothesis: str) -> Entailment:
        """Return whether the picture entails the hypothesis, contradicts it, or neither."""
        inputs = {"IMAGE": [encoded(image)], "HYPOTHESIS": [hypothesis.encode()]}
        return Entailment.read(self.infer("entail", inputs))

    def map(self, task: str, items: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Yield `getattr(self, task)(item, **options)` per item, in order, many at once; a tuple is several arguments.

        The first failure is raised at its place.
        """
        method = getattr(self, task)
        with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="map") as pool:
            waiting: list[Future[Any]] = []
            for item in items:
                arguments = item if isinstance(item, tuple) else (item,)
                waiting.append(pool.submit(method, *arguments, **options))
                if len(waiting) == 2 * CONCURRENCY:  # items may be endless
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    # Tensors in, tensors out: what a client sends and gets.

    def infer(self, model: str, inputs: Mapping[str, Value]) -> Values:
        """Run a public model on its input tensors and return its output tensors; BYTES are lists of bytes.

        Raises NotServed, InvalidRequest, or another `mplug.errors.ServingError`.
        """
        return self.submit(model, inputs).result()

    def submit(self, model: str, inputs: Mapping[str, Value]) -> Future[Values]:
        """Like `infer`, at once: the future holds the outputs or the error. Cancelling it stops the search."""
        if self._closed:
            raise Unavailable("the pipeline is closed")
        return asyncio.run_coroutine_threadsafe(self._answer(model, dict(inputs)), self._events)

    def close(self) -> None:
        """Fail what is in flight with Unavailable, and end all threads."""
        with self._opening:  # a decoder that is being opened is closed, too
            if self._closed:
                return
            self._closed = True
        for decoder in self._decoders.values():
            decoder.close()
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._events).result()
        self._parsers.shutdown(cancel_futures=True)
        self._worker.shutdown(cancel_futures=True)
        self._events.call_soon_threadsafe(self._events.stop)
        self._thread.join()
        self._events.close()

    async def _answer(self, model: str, inputs: dict[str, Value]) -> Values:
        try:
            task = await self._events.run_in_executor(self._parsers, self._task, model)
            parsed = await self._events.run_in_executor(
                self._parsers, lambda: self._timer("parse", lambda: task.parse(inputs))
            )

            async def call_stage(name: str, tensors: Mapping[str, Value], outputs: Sequence[str]) -> Values:
                return await self._call_stage(self._stage_names[model].get(name, name), name, tensors)

            return dict(await task.run(parsed, call_stage))
        except asyncio.CancelledError:
            if self._closed:
                raise Unavailable("the pipeline was closed") from None
            raise

    def _task(self, model: str) -> Task:
        with self._opening:
            if model not in self._tasks:
                if model not in self.models:
                    served = ", ".join(self.models) or "no public model"
                    raise NotServed(f"{self._repository} does not serve {model!r}; it serves {served}")
                folder = self._repository / model / "1"
                self._stage_names[model] = read_stages(folder / STAGES_FILE)
                self._tasks[model] = open_task(folder)
            return self._tasks[model]

    async def _call_stage(self, model: str, stage: str, inputs: Mapping[str, Value]) -> Values:
        if stage == DECODER:
            service = await self._events.run_in_executor(self._parsers, self._decoder, model)
            return await self._decode(service, inputs)
        if model not in self._stages:
            opened = await self._events.run_in_executor(self._worker, self._open_stage, model, stage)
            self._stages.setdefault(model, opened)
        run = self._stages[model]
        if stage != "vision_encoder":
            return await run(inputs)
        return await self._states.get((model, inputs), lambda: run(inputs))

    def _open_stage(self, model: str, stage: str) -> BatchingStage:
        if stage not in ENCODERS:
            raise StageError(f"{stage}: is not an encoder stage; the encoders are {', '.join(ENCODERS)}")
        graph = open_graph(self._repository / model / "1", stage)
        config = (self._repository / model / "config.pbtxt").read_text()
        rows = int(re.search(r"^max_batch_size: (\d+)", config, re.M)[1])
        return BatchingStage(lambda inputs: self._timer(stage, lambda: graph(inputs)), rows, self._worker)

    def _decoder(self, model: str) -> DecoderService:
        with self._opening:
            if self._closed:
                raise Unavailable("the pipeline was closed")
            if model not in self._decoders:
                folder = self._repository / model / "1"
                self._decoders[model] = DecoderService.open(folder, max_queue=1 << 30, wrap=self._wrap_decoder)
            return self._decoders[model]

    async def _decode(self, service: DecoderService, inputs: Mapping[str, Value]) -> Values:
        answer: asyncio.Future[Values] = self._events.create_future()

        def settle(outcome: Values | BaseException) -> None:
            if answer.done():
                return
            if isinstance(outcome, BaseException):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        def deliver(outcome: Values | BaseException) -> None:  # from the decoder's threads
            self._events.call_soon_threadsafe(settle, outcome)

        service.submit(inputs, deliver, deliver)
        return await answer


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def encoded(picture: Picture) -> bytes:
    """Return a picture as the bytes of an image file; one in memory becomes a PNG. Raises OSError for a path."""
    if isinstance(picture, bytes):
        return picture
    if not isinstance(picture, Image.Image):
        return Path(picture).read_bytes()
    buffer = io.BytesIO()
    if picture.mode.startswith("I;16"):  # of either byte order
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
    if picture.mode in ("I", "F"):  # PNG has no 32-bit samples, and TIFF keeps them for the task to judge
        picture.save(buffer, "TIFF")
    else:
        (picture if picture.mode in _PNG_MODES else picture.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _visual(image: Picture | Sequence[Picture] | None, video: Video | None, frames: int | None) -> dict[str, Value]:
    inputs: dict[str, Value] = {}
    if image is not None:
        several = isinstance(image, list | tuple)
        inputs["IMAGE"] = [encoded(one) for one in (image if several else [image])]
    if video is not None:
        inputs["VIDEO"] = [video if isinstance(video, bytes) else Path(video).read_bytes()]
    if frames is not None:
        inputs["FRAMES"] = np.array([frames], np.int32)
    return inputs


def _search(options: Mapping[str, float]) -> dict[str, Value]:
    known = ("num_beams", "min_length", "max_length", "num_return", "length_penalty")
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {name!r}; known: {', '.join(known)}")
    return {
        name.upper(): np.array([value], np.float32 if name == "length_penalty" else np.int32)
        for name, value in options.items()
    }
