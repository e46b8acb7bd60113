"""Read a server's metrics port, and compare two readings."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

# prometheus-client's parser would append `_total` to the names of Triton's counters, which have none.
_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Metrics:
    """One reading: name, labels and value of each series."""

    series: tuple[tuple[str, dict[str, str], float], ...]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        """Parse the Prometheus text format."""
        return cls(tuple((name, dict(_LABEL.findall(held)), float(value)) for name, held, value in _LINE.findall(text)))

    @classmethod
    def read(cls, url: str) -> Metrics:
        """Read the metrics of HOST:PORT. Raises OSError if the port does not answer."""
        with urllib.request.urlopen(f"http://{url}/metrics", timeout=30) as response:
            return cls.parse(response.read().decode())

    def total(self, name: str, **labels: str) -> float:
        """Return the sum over the series of this name with these labels; 0 if there is none."""
        return sum(value for found, held, value in self.series if found == name and labels.items() <= held.items())

    def since(self, before: Metrics, name: str, **labels: str) -> float:
        """Return how much a counter rose between two readings."""
        return self.total(name, **labels) - before.total(name, **labels)


def mean_batch(before: Metrics, after: Metrics) -> float | None:
    """Return the mean number of requests per decode step between two readings; None if no step ran."""
    steps = after.since(before, "mplug_decode_steps_total")
    return round(after.since(before, "mplug_decode_sequence_steps_total") / steps, 2) if steps else None
