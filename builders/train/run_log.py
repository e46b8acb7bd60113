"""What a run leaves behind to be looked at: TensorBoard, `log.jsonl`, and a plot at the end.

Records: `{"step": …, "samples": …, "losses": {…}}` and `{"step": …, "samples": …, "metrics": {…}}`. When each was
written stands in `clock.jsonl`, so that the log of a run that was stopped and resumed is that of one that was not.
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from builders.train.plot import draw, read_logs

LOG, CLOCK, PLOT, TENSORBOARD = "log.jsonl", "clock.jsonl", "training.png", "tensorboard"


def hours_of(output: Path) -> float:
    """Return how long the steps of a run took; neither pauses nor steps that were run again after one count."""
    path = output / CLOCK
    marks = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sum(later["time"] - mark["time"] for mark, later in pairwise(marks) if later["step"] > mark["step"]) / 3600


def _lines_until(path: Path, step: int) -> list[str]:
    """Return the lines of a log up to a step; a line that a full disk cut off is behind the newest state."""
    kept: list[str] = []
    for line in path.read_text().splitlines() if path.exists() and step else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            break
    return kept


class RunLog:
    """Losses and metrics of one run; with `quiet` (all processes but the first) it writes nothing."""

    def __init__(self, output: Path, *, resumed_at: int = 0, quiet: bool = False, leg: str = "") -> None:
        """Drop what an earlier run logged after step `resumed_at`: those steps are run again. `leg` names the run."""
        self.output, self.quiet = output, quiet
        self.labels = {"leg": leg} if leg else {}
        if quiet:
            return
        output.mkdir(parents=True, exist_ok=True)
        for name in (LOG, CLOCK):
            path = output / name
            path.write_text("".join(f"{line}\n" for line in _lines_until(path, resumed_at)))
        self._mark(resumed_at)
        self._board = SummaryWriter(str(output / TENSORBOARD), purge_step=resumed_at + 1 if resumed_at else None)

    def write(self, step: int, samples: int, kind: str, values: dict[str, float], **beside: float) -> None:
        """Log values of a `kind`, `losses` or `metrics`; `beside`: numbers that are not drawn."""
        if self.quiet:
            return
        rounded = {name: round(value, 6) for name, value in values.items()}
        record = {**self.labels, "step": step, "samples": samples, kind: rounded, **beside}
        with (self.output / LOG).open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        self._mark(step)
        for name, value in {**values, **beside}.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def _mark(self, step: int) -> None:
        with (self.output / CLOCK).open("a") as stream:
            stream.write(json.dumps({"step": step, "time": round(time.time(), 3)}) + "\n")

    def close(self) -> None:
        """Write the plot."""
        if self.quiet:
            return
        self._board.close()
        records = read_logs([self.output / LOG])
        if records:
            draw(records, self.output / PLOT)
