"""Keep the weights that did best on the validation split, which so chooses when training should have ended.

OUTPUT/best.safetensors      weights of the network, with step and value as metadata
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from builders.train.distributed import rank
from mplug.network import MPlug

FILE = "best.safetensors"


class BestWeights:
    """The weights of the highest value of a metric so far; equal values keep the earlier ones."""

    def __init__(self, network: MPlug, output: Path, metric: str, *, resumed_at: int = 0) -> None:
        """Go on from what an earlier part of the run kept; what it kept after step `resumed_at` will come again."""
        self.network, self.metric, self.path = network, metric, output / FILE
        self.step, self.value = 0, float("-inf")
        if not resumed_at or not self.path.exists():
            return
        with safe_open(self.path, framework="pt") as stream:
            kept = stream.metadata()
        if int(kept["step"]) <= resumed_at:
            self.step, self.value = int(kept["step"]), float(kept["value"])

    def offer(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the present weights if they are the best. Raises ValueError where the metric was not measured."""
        if self.metric not in metrics:
            measured = ", ".join(metrics) or "none: name a --validation-split"
            raise ValueError(f"--keep-best {self.metric!r} is no metric of this task; measured are {measured}")
        if metrics[self.metric] <= self.value:
            return
        self.step, self.value = step, metrics[self.metric]
        if rank() == 0:
            unfinished = self.path.with_suffix(".unfinished")
            about = {"step": str(step), "value": repr(self.value), "metric": self.metric}
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, unfinished, metadata=about)
            unfinished.replace(self.path)

    def restore(self) -> None:
        """Give the network the best weights."""
        self.network.load_state_dict(load_file(self.path))
