"""Progress of a run, as rows that are safe in OUTPUT."""

from __future__ import annotations

import threading
from types import TracebackType

import pyarrow as pa
from tqdm import tqdm

from bulk.output import Output

SECONDS = 2.0


class Progress:
    """Watches OUTPUT from a thread while it is open: a bar on a terminal, nothing elsewhere."""

    def __init__(self, output: Output, done: int, total: int | None) -> None:
        """`total` is None where inputs are counted only by reading them, as in shards."""
        self._output, self._seen = output, set[str]()
        self._bar = tqdm(total=total, initial=done, unit="input", disable=None, dynamic_ncols=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if not self._bar.disable:
            self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._bar.close()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            for name in self._output.new_files():
                if name not in self._seen:
                    self._bar.update(self._output.rows_of(name))
                    self._seen.add(name)
        except (OSError, pa.ArrowException):
            pass  # the run itself finds out what is wrong with OUTPUT
