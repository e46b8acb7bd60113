"""What an evaluation asks: a client of a running server, or a checkpoint in this process; both answer alike."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from builders.build import build
from clients.client.calls import Call, ClientError
from mplug.contract import Value
from mplug.errors import InvalidRequest, ServingError
from mplug.pipeline import Pipeline

T = TypeVar("T")


class Model(Protocol):
    """Whatever answers the calls of `clients.client.calls`."""

    async def infer(self, call: Call[T]) -> T:
        """Return the answer. Raises ClientError."""

    async def is_ready(self, model: str | None = None) -> bool:
        """Return whether it answers at all, or has this public model."""


class LocalModel:
    """A pipeline as a `Model`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def is_ready(self, model: str | None = None) -> bool:
        """See `Model.is_ready`."""
        return model is None or model in self._pipeline.models

    async def infer(self, call: Call[T]) -> T:
        """See `Model.infer`."""
        inputs = {name: array.tolist() if array.dtype == object else array for name, array in call.inputs.items()}
        try:
            outputs = await asyncio.wrap_future(self._pipeline.submit(call.model, inputs))
        except InvalidRequest as error:
            raise ClientError(f"{call.model}: {error}") from None
        except ServingError as error:
            raise ClientError(f"{call.model}: {error}", error.code) from None
        return call.parse({name: _tensor(value) for name, value in outputs.items()})


@contextlib.asynccontextmanager
async def open_checkpoint(checkpoint: Path, task: str | None = None) -> AsyncIterator[LocalModel]:
    """Build a checkpoint for PyTorch in a scratch folder and open it. Raises what `builders.build.build` raises."""
    with tempfile.TemporaryDirectory(prefix="mplug-evaluation-") as scratch:
        repository = Path(scratch) / "repository"
        with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to the table
            build(checkpoint, repository, target="torch", task=task)
        with Pipeline.open(repository) as pipeline:
            yield LocalModel(pipeline)


def _tensor(value: Value) -> np.ndarray:
    """Return an output as a client has it: BYTES as an array of objects."""
    if isinstance(value, np.ndarray):
        return value
    tensor = np.empty(len(value), dtype=np.object_)
    tensor[:] = value
    return tensor
