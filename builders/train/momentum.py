"""A copy of a network that follows it slowly, for soft labels in fine-tuning."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from builders.train.objectives.contrastive import MOMENTUM
from mplug.network import MPlug


class MomentumCopy(nn.Module):
    """The whole network once more, never trained, never dropping anything out."""

    def __init__(self, network: MPlug, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.momentum = momentum
        self.network = deepcopy(network).requires_grad_(False)

    def train(self, mode: bool = True) -> MomentumCopy:
        """The copy stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    @torch.no_grad()
    def follow(self, network: MPlug) -> None:
        """Move towards the network; once per step of the optimiser."""
        for own, other in zip(self.network.parameters(), network.parameters(), strict=True):
            own.lerp_(other, 1 - self.momentum)
