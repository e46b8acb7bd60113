"""Metrics of the endpoint, as Prometheus reads them; those of the models are on the server's own metrics port."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from deploy.openai.admission import Admission

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one endpoint."""

    def __init__(self, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        labels = ("route", "status")
        self._requests = Counter(
            "mplug_openai_requests",
            "Requests by their answer; 499: the client had gone",
            labels,
            registry=self._registry,
        )
        self._seconds = Histogram(
            "mplug_openai_seconds",
            "From a request's first line to its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        for name, about, value in (
            ("requests_active", "Requests being read, waiting or answered", lambda: admission.requests),
            ("body_bytes_held", "Bytes of their bodies", lambda: admission.held),
        ):
            Gauge(f"mplug_openai_{name}", about, registry=self._registry).set_function(value)

    def count(self, route: str, status: int, seconds: float) -> None:
        """Note an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def response(self) -> Response:
        """Return all of it as text."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
