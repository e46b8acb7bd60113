"""A run: read what is left of INPUT, answer it in workers, write it to OUTPUT."""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from pyarrow import fs
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from bulk import engine
from bulk.corpus import Corpus, Part
from bulk.errors import BulkError
from bulk.location import Location
from bulk.output import Output, ParquetFiles
from bulk.progress import Progress
from bulk.reading import SCHEMA, Columns, check_parquet, read_part
from bulk.tasks import Task
from bulk.worker import Answerer
from mplug.pipeline import BUILD_INFO, Pipeline, RepositoryError

BATCH = 32  # inputs that a worker has in hand at once
#: How often a batch is tried again when its worker dies: a machine may go, but what kills every worker ends the run.
RETRIES = 3
RESTARTS = 8  # of a worker, in a run


class CorpusSource(Datasource):
    """A corpus as Ray Data reads it: a task per part."""

    def __init__(self, filesystem: fs.FileSystem, folder: str, parts: list[Part], columns: Columns) -> None:
        super().__init__()
        self._filesystem, self._folder, self._parts, self._columns = filesystem, folder, parts, columns

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """Return a task per part."""
        return [
            ReadTask(
                functools.partial(_tables, self._filesystem, self._folder, part, self._columns),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
                schema=SCHEMA,
            )
            for part in self._parts
        ]


def _tables(filesystem: fs.FileSystem, folder: str, part: Part, columns: Columns) -> Iterator[pa.Table]:
    yield from read_part(filesystem, folder, part, columns)


def run(options: argparse.Namespace, task: Task) -> int:
    """Run a command; return the exit code. Raises BulkError."""
    repository = Path(options.repository).absolute()
    _check_repository(repository, task)
    corpus = Corpus.open(options.input)
    columns = Columns(options.picture_column, getattr(options, "question_column", None), options.key_column)
    total = _checked(corpus, columns)
    place = Location.of(options.output)
    inside = corpus.location.path and f"{place.path}/".startswith(f"{corpus.location.path}/")
    if inside and place.filesystem.equals(corpus.location.filesystem):
        raise BulkError(f"OUTPUT {place.name} lies inside INPUT: give another one")
    with Output.open(options.output, _manifest(corpus, task, repository, columns)) as output:
        return _answer(options, task, repository, corpus, total, columns, output)


def _answer(
    options: argparse.Namespace,
    task: Task,
    repository: Path,
    corpus: Corpus,
    total: int | None,
    columns: Columns,
    output: Output,
) -> int:
    if options.retry:
        output.forget_failures()
    done = output.done(corpus.kind)
    if done.count:
        print(f"{done.count} inputs are answered already", flush=True)
    parts = list(corpus.parts(done))
    if parts:
        workers = options.workers or max(1, (os.cpu_count() or 1) // options.threads)
        with engine.started(options.address, workers, options.threads, options.gpus):
            rows = ray.data.read_datasource(
                CorpusSource(corpus.location.filesystem, corpus.location.path, parts, columns),
                override_num_blocks=len(parts),
            ).map_batches(
                Answerer,
                fn_constructor_args=(str(repository), task),
                compute=ray.data.ActorPoolStrategy(size=workers),
                batch_size=BATCH,
                batch_format="pyarrow",
                num_cpus=options.threads,
                num_gpus=options.gpus,
                max_restarts=RESTARTS,
                max_task_retries=RETRIES,
            )
            sink = ParquetFiles(output.location, output.run, task.schema, options.rows_per_file)
            with Progress(output, done.count, total):
                try:
                    rows.write_datasink(sink)
                except Exception as error:
                    raise BulkError(
                        f"{engine.reason(error)}; {output.rows()} rows are safe in {output.location.name}, and the "
                        "same command goes on"
                    ) from error
        output.remove_strays()
    failed = output.failed()
    print(f"{output.rows()} rows, {failed} of them with an error: {output.location.name}", flush=True)
    return 0


def _check_repository(repository: Path, task: Task) -> None:
    try:
        with Pipeline.open(repository) as pipeline:
            if task.model not in pipeline.models:
                raise BulkError(f"{repository} does not serve {task.model}; it serves {', '.join(pipeline.models)}")
    except RepositoryError as error:
        raise BulkError(str(error)) from error


def _manifest(corpus: Corpus, task: Task, repository: Path, columns: Columns) -> dict[str, Any]:
    """Return what the rows of an output depend on; another run with the same may go on with it."""
    info = json.loads((repository / BUILD_INFO).read_text())
    return {
        "task": task.model,
        "input": corpus.name,
        "options": task.settings(),
        "columns": {name: value for name, value in vars(columns).items() if value is not None},
        "weights_sha256": info.get("weights_sha256", info.get("checkpoints")),
    }


def _checked(corpus: Corpus, columns: Columns) -> int | None:
    """Return the number of inputs, where it can be told without reading them all.

    Raises BulkError for a parquet file that lacks a column.
    """
    if corpus.kind == "folder":
        return len(corpus.names)
    if corpus.kind == "shards":
        return None
    place = corpus.location
    return sum(check_parquet(place.filesystem, f"{place.path}/{name}", columns) for name in corpus.names)
