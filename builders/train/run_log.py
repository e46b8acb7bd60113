"""What a run leaves behind to be looked at: TensorBoard, `log.jsonl`, and a plot at the end.

Records: `{"step": …, "samples": …, "losses": {…}}` and `{"step": …, "samples": …, "metrics": {…}}`.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from builders.train.plot import draw, read_logs

LOG, PLOT, TENSORBOARD = "log.jsonl", "training.png", "tensorboard"


class RunLog:
    """Losses and metrics of one run; with `quiet` (all processes but the first) it writes nothing."""

    def __init__(self, output: Path, *, resumed_at: int = 0, quiet: bool = False, leg: str = "") -> None:
        """Drop what an earlier run logged after step `resumed_at`: those steps are run again. `leg` names the run."""
        self.output, self.quiet = output, quiet
        self.labels = {"leg": leg} if leg else {}
        if quiet:
            return
        output.mkdir(parents=True, exist_ok=True)
        path = output / LOG
        lines = path.read_text().splitlines() if path.exists() and resumed_at else []
        kept = [line for line in lines if json.loads(line)["step"] <= resumed_at]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._board = SummaryWriter(str(output / TENSORBOARD), purge_step=resumed_at + 1 if resumed_at else None)

    def write(self, step: int, samples: int, kind: str, values: dict[str, float], **beside: float) -> None:
        """Log values of a `kind`, `losses` or `metrics`; `beside`: numbers that are not drawn."""
        if self.quiet:
            return
        rounded = {name: round(value, 6) for name, value in values.items()}
        record = {**self.labels, "step": step, "samples": samples, kind: rounded, **beside}
        with (self.output / LOG).open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        for name, value in {**values, **beside}.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Write the plot."""
        if self.quiet:
            return
        self._board.close()
        records = read_logs([self.output / LOG])
        if records:
            draw(records, self.output / PLOT)
