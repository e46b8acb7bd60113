"""What a server tells on its metrics port, read and compared."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)")


@dataclass(frozen=True)
class Metrics:
    """One reading: name and labels of each series, and its value."""

    series: tuple[tuple[str, str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        """From the Prometheus text format."""
        found = (_LINE.match(line) for line in text.splitlines() if not line.startswith("#"))
        return cls(tuple((match[1], match[2] or "", float(match[3])) for match in found if match))

    @classmethod
    def read(cls, url: str) -> Metrics:
        """From HOST:PORT. Raises OSError where nobody answers."""
        with urllib.request.urlopen(f"http://{url}/metrics", timeout=30) as response:
            return cls.parse(response.read().decode())

    def total(self, name: str, **labels: str) -> float:
        """The sum over the series of this name with these labels; 0 where there is none."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value for found, held, value in self.series if found == name and all(label in held for label in wanted)
        )

    def since(self, before: Metrics, name: str, **labels: str) -> float:
        """How much a counter rose between two readings."""
        return self.total(name, **labels) - before.total(name, **labels)


def mean_batch(before: Metrics, after: Metrics) -> float | None:
    """Requests in the decode loop per step between two readings; None where no step was made."""
    steps = after.since(before, "mplug_decode_steps_total")
    return round(after.since(before, "mplug_decode_sequence_steps_total") / steps, 2) if steps else None
