"""Custom metrics of a served model, on the server's `/metrics`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from mplug.triton.context import ModelContext
from mplug.triton.drain import IN_FLIGHT_METRIC
from mplug.triton.tensors import one_line


class Metric:
    """A custom metric on the server's `/metrics`, with fixed labels: a `counter` or a `gauge`.

    On a server without custom metrics it does nothing. Any thread may use it. The lock is needed because Triton's
    object writes its message into memory of its own, and two threads in it crash tritonserver. So use this class
    instead of `pb_utils.MetricFamily`, and one object per set of labels.
    """

    _families: dict[str, Any] = {}  # a family must outlive its metrics  # noqa: RUF012

    def __init__(self, kind: str, name: str, description: str, labels: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._metric = None
        family_class = getattr(pb_utils, "MetricFamily", None)
        kind_value = getattr(family_class, kind.upper(), None)
        if kind_value is None:
            return
        if name not in self._families:
            self._families[name] = family_class(name=name, description=description, kind=kind_value)
        self._metric = self._families[name].Metric(labels=dict(labels))

    def add(self, amount: float = 1) -> None:
        """Add to a counter or a gauge."""
        self._do("increment", amount)

    def set(self, value: float) -> None:
        """Set a gauge."""
        self._do("set", value)

    def _do(self, method: str, value: float) -> None:
        if self._metric is not None:
            try:
                with self._lock:
                    getattr(self._metric, method)(value)
            except Exception as error:
                pb_utils.Logger.log_warn(f"metric not updated: {one_line(error)}")


def in_flight_metric(context: ModelContext) -> Metric:
    """Return the gauge of the requests that a model has not answered yet."""
    return Metric("gauge", IN_FLIGHT_METRIC, "Requests being answered", {"model": context.name})
