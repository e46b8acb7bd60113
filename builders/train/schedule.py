"""AdamW with two learning rates, and the cosine schedule with warm-up."""

from __future__ import annotations

import math
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


def adamw(
    modules: Iterable[nn.Module],
    learning_rate: float,
    vision_learning_rate: float,
    weight_decay: float = WEIGHT_DECAY,
    *,
    beta2: float = 0.999,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW over what of the modules is to be trained; each group keeps its full rate as `full_rate`.

    What belongs to a vision encoder learns at the vision encoder's rate, which the published training keeps lower,
    since CLIP's weights are good already. Biases, norms and single numbers do not decay. `beta2`: how long squares of
    gradients are remembered.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    rates = {True: vision_learning_rate, False: learning_rate}
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                decay = weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault(("vision_encoder." in name, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rates[vision], "full_rate": rates[vision], "weight_decay": decay}
            for (vision, decay), parameters in groups.items()
        ],
        betas=(0.9, beta2),
        fused=fused,
    )


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` times its full rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * factor
