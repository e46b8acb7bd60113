"""Objective: image-text contrast, with momentum encoders and queues (paper, section 3.3; ALBEF, arXiv 2107.07651).

    result = contrast(network, image_states, text_states, pixel_values, input_ids, attention_mask)
    result.loss.backward()
    contrast.enqueue(result)             # after every batch
    contrast.update_momentum(network)    # after every step of the optimiser

Images and texts are contrasted with features that slowly changing copies of the encoders compute; those of past
batches are kept in queues, so that a small batch has many negatives. All of it is in `state_dict`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from builders.train.distributed import gather, rank
from mplug.network import MPlug

MOMENTUM = 0.995
QUEUE_SIZE = 65_536  # features of each kind
TEMPERATURE = 0.07
TEMPERATURE_RANGE = (0.001, 0.5)  # it is learnt, but stays inside
ALPHA = 0.4  # share of the targets that the momentum encoders set

MOMENTUM_PARTS = ("vision_encoder", "text_encoder", "vision_projection", "text_projection")
NOBODY = -1  # id of a pair that shares its image and text with no other


class Contrast(NamedTuple):
    """What one batch gives; B pairs here, G = B times the number of processes."""

    loss: Tensor
    image_to_text: Tensor  #: `[B, B]` similarities over temperature, for drawing hard negatives
    text_to_image: Tensor  #: `[B, B]`
    image_keys: Tensor  #: `[G, E]` momentum features of all processes, to be enqueued
    text_keys: Tensor  #: `[G, E]`
    ids: Tensor  #: `[G]`


class ImageTextContrast(nn.Module):
    """Momentum copies, queues, temperature, and the loss. The network itself is passed in and not kept."""

    def __init__(
        self,
        network: MPlug,
        *,
        queue_size: int = QUEUE_SIZE,
        momentum: float = MOMENTUM,
        temperature: float = TEMPERATURE,
        alpha: float = ALPHA,
    ) -> None:
        super().__init__()
        self.queue_size, self.momentum, self.alpha = queue_size, momentum, alpha
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.teacher = MPlug(network.config, MOMENTUM_PARTS).requires_grad_(False)
        self.copy_weights(network)
        width = network.config.embed_dim
        self.register_buffer("image_queue", torch.zeros(queue_size, width))
        self.register_buffer("text_queue", torch.zeros(queue_size, width))
        self.register_buffer("id_queue", torch.full((queue_size,), NOBODY))
        self.register_buffer("enqueued", torch.zeros((), dtype=torch.long))  # in all, from the start

    def train(self, mode: bool = True) -> ImageTextContrast:
        """The teacher never drops anything out."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def copy_weights(self, network: MPlug) -> None:
        """Make the teacher equal to the network, as at the start of training."""
        for own, other in self._pairs(network):
            own.copy_(other)

    @torch.no_grad()
    def update_momentum(self, network: MPlug) -> None:
        """Move the teacher towards the network; once per step of the optimiser, which also bounds the temperature."""
        for own, other in self._pairs(network):
            own.lerp_(other.to(own.dtype), 1 - self.momentum)
        self.temperature.clamp_(*TEMPERATURE_RANGE)

    def _pairs(self, network: MPlug) -> list[tuple[Tensor, Tensor]]:
        named = dict(network.named_parameters())
        return [(own, named[name]) for name, own in self.teacher.named_parameters()]

    @torch.no_grad()
    def enqueue(self, result: Contrast) -> None:
        """Put a batch's momentum features into the queues, over the oldest ones."""
        if self.queue_size == 0:
            return
        count = min(self.queue_size, len(result.ids))
        places = (self.enqueued + torch.arange(count, device=self.enqueued.device)) % self.queue_size
        self.image_queue[places] = result.image_keys[-count:].to(self.image_queue.dtype)
        self.text_queue[places] = result.text_keys[-count:].to(self.text_queue.dtype)
        self.id_queue[places] = result.ids[-count:]
        self.enqueued += count

    def forward(
        self,
        network: MPlug,
        image_states: Tensor,
        text_states: Tensor,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        kept: Tensor | None = None,
        ids: Tensor | None = None,
        alpha: float | None = None,
    ) -> Contrast:
        """Contrast B pairs, image i belonging to text i.

        Args:
            image_states, text_states: `[B, N, W]`, `[B, L, W]` of the network, with gradient.
            pixel_values, input_ids, attention_mask: what they were computed from, for the teacher.
            kept: the patches that `image_states` were restricted to.
            ids: `[B]`, not negative; pairs with the same id are right for each other too, here and in the queue
                (the captions of one photograph; scenes with one caption).
            alpha: in place of the constructor's; published training lets it grow from 0 over the first epoch.
        """
        if ids is None:
            ids = torch.full((len(input_ids),), NOBODY, device=input_ids.device)
        with torch.no_grad():
            image_key = self.teacher.image_feature(self.teacher.vision_encoder(pixel_values, kept)).float()
            text_key = self.teacher.text_feature(self.teacher.text_encoder(input_ids, attention_mask)).float()
        image_feature = network.image_feature(image_states).float()
        text_feature = network.text_feature(text_states).float()
        image_keys, text_keys, all_ids = gather(image_key), gather(text_key), gather(ids)
        filled = int(self.enqueued.clamp(max=self.queue_size))
        image_columns = torch.cat([image_keys, self.image_queue[:filled]])
        text_columns = torch.cat([text_keys, self.text_queue[:filled]])
        truth = self._truth(ids, torch.cat([all_ids, self.id_queue[:filled]]))
        share = self.alpha if alpha is None else alpha
        # Half precision is too coarse for similarities that are divided by 0.07.
        with torch.autocast(image_feature.device.type, enabled=False):
            image_to_text = image_feature @ text_columns.T / self.temperature
            text_to_image = text_feature @ image_columns.T / self.temperature
            losses = []
            for similarity, key, columns in (
                (image_to_text, image_key, text_columns),
                (text_to_image, text_key, image_columns),
            ):
                taught = torch.softmax(key @ columns.T / self.temperature.detach(), dim=1)
                targets = share * taught + (1 - share) * truth
                losses.append(-(torch.log_softmax(similarity, dim=1) * targets).sum(1).mean())
        own = slice(rank() * len(ids), (rank() + 1) * len(ids))
        return Contrast(
            sum(losses) / 2,
            image_to_text[:, own].detach(),
            text_to_image[:, own].detach(),
            image_keys,
            text_keys,
            all_ids,
        )

    @staticmethod
    def _truth(ids: Tensor, columns: Tensor) -> Tensor:
        """`[B, G + queue]` which columns are right for each row, adding up to 1."""
        right = (ids[:, None] == columns[None]) & (ids[:, None] != NOBODY)
        rows = torch.arange(len(ids), device=ids.device)
        right[rows, rows + rank() * len(ids)] = True
        return right / right.sum(1, keepdim=True)
