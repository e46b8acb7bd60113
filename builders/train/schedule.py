"""AdamW with two learning rates, Muon beside it, and the cosine schedule with warm-up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

WEIGHT_DECAY = 0.02
LOWEST = 0.01  # of the full rate, at the end of the cosine


def cosine_with_warmup(done: float, step: int, warmup: int, lowest: float = LOWEST) -> float:
    """Factor of the learning rate when the share `done` of the run is behind, at step `step` from 0.

    Rises linearly over the first `warmup` steps, and falls as half a cosine to `lowest` over the whole run.
    """
    falling = lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
    return min(1.0, (step + 1) / max(1, warmup)) * falling


class Optimiser:
    """Several optimisers of PyTorch, each for some of the parameters, stepped as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)
        for part in parts:
            part.state = self.state  # one for all: no parameter belongs to two of them

    @property
    def param_groups(self) -> list[dict]:
        """The groups of all of them, each with its full rate as `full_rate`."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Change the parameters by their gradients."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


def new_optimiser(
    modules: Iterable[nn.Module],
    learning_rate: float,
    vision_learning_rate: float,
    weight_decay: float = WEIGHT_DECAY,
    *,
    beta2: float = 0.999,
    fused: bool = True,
    muon: float = 0.0,
) -> Optimiser:
    """Return AdamW, with Muon beside it if asked for, over what of the modules is to be trained.

    What belongs to a vision encoder learns at the vision encoder's rate, which the published training keeps lower,
    since CLIP's weights are good already. Biases, norms and single numbers do not decay. `beta2`: how long squares of
    gradients are remembered. `muon`: rate of Muon in multiples of AdamW's, for the matrices of transformer layers (0:
    AdamW for all, as published). Muon steps along the gradient with all its singular values made one; from nothing
    that needs about half the samples ("Muon is scalable for LLM training", arXiv 2502.16982).
    """
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    rates = {True: vision_learning_rate, False: learning_rate}
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                decay = weight_decay if parameter.ndim > 1 else 0.0
                by_muon = muon > 0 and parameter.ndim == 2 and (".blocks." in name or ".layers." in name)
                groups.setdefault((by_muon, "vision_encoder." in name, decay), []).append(parameter)

    def described(by_muon: bool, factor: float) -> list[dict[str, object]]:
        return [
            {"params": parameters, "lr": factor * rates[vision], "full_rate": factor * rates[vision], "weight_decay": d}
            for (matrices, vision, d), parameters in groups.items()
            if matrices == by_muon
        ]

    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(described(False, 1.0), betas=(0.9, beta2), fused=fused)]
    if muon:
        parts.append(torch.optim.Muon(described(True, muon), adjust_lr_fn="match_rms_adamw"))
    return Optimiser(*parts)


def set_rate(optimiser: Optimiser | torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` times its full rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * factor
