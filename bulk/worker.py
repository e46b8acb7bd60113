"""What a Ray Data actor does: opens a repository once, then turns tables of rows into tables of answers."""

from __future__ import annotations

import io
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
from PIL import Image

from bulk.tasks import Task
from mplug.contract import Values
from mplug.errors import InvalidRequest, ServingError
from mplug.pipeline import Pipeline

CACHE_MB = 64  # states of pictures that are asked about several times
PROBE_SIDE = 32  # pixels


class Answerer:
    """One process with the compiled stages in it."""

    def __init__(self, repository: str, task: Task) -> None:
        """Open the repository and answer about a grey picture.

        So a worker that cannot work ends the run with its reason, instead of writing it into every row. Raises
        RepositoryError, ServingError or RuntimeUnavailable.
        """
        self._task = task
        self._pipeline = Pipeline.open(repository, cache_mb=CACHE_MB)
        grey = io.BytesIO()
        Image.new("RGB", (PROBE_SIDE, PROBE_SIDE), (127, 127, 127)).save(grey, "PNG")
        row = {"image": grey.getvalue(), "video": None, "question": task.question or "what is this?"}
        self._submit(row).result()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return a row of the task's schema for each row of `bulk.reading.SCHEMA`, in their order."""
        asked = [(row, self._asked(row)) for row in rows.to_pylist()]
        return pa.Table.from_pylist([self._cells(row, answer) for row, answer in asked], schema=self._task.schema)

    def _asked(self, row: dict[str, Any]) -> Future[Values] | str:
        """Submit a row, so that those of a table share batches; return what was wrong where it cannot be."""
        if row["problem"] is not None:
            return row["problem"]
        try:
            return self._submit(row)
        except InvalidRequest as error:
            return str(error)

    def _submit(self, row: dict[str, Any]) -> Future[Values]:
        return self._pipeline.submit(self._task.model, self._task.inputs(row))

    def _cells(self, row: dict[str, Any], answer: Future[Values] | str) -> dict[str, Any]:
        cells: dict[str, Any] = {"input": row["input"], "key": row["key"]}
        if self._task.model == "vqa":
            cells["question"] = self._task.asked(row)
        if isinstance(answer, str):
            return cells | {"error": answer}
        try:
            return cells | self._task.answer(answer.result(), row)
        except ServingError as error:
            return cells | {"error": str(error)}
        except MemoryError:
            return cells | {"error": "no memory was left for this input: give fewer --workers"}
