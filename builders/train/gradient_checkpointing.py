"""Gradient checkpointing: less memory in training, for a second forward pass (arXiv 1604.06174).

The blocks of a network forget what is inside them and compute it again on the way back. The network that is served
and exported knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mplug.network.attention import TransformerLayer
from mplug.network.vision_encoder import VisionBlock


def checkpoint_blocks(network: nn.Module) -> None:
    """Make every transformer block of the network keep its inputs alone."""
    for block in network.modules():
        if isinstance(block, TransformerLayer | VisionBlock) and any(p.requires_grad for p in block.parameters()):
            block.forward = _forgetful(block.forward)


def _forgetful(forward: Callable) -> Callable:
    @wraps(forward)
    def wrapped(*arguments):
        if not torch.is_grad_enabled():
            return forward(*arguments)
        return checkpoint(forward, *arguments, use_reentrant=False)

    return wrapped
