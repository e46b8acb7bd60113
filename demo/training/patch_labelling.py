"""Objectives: name what each patch shows and where that ends, and what the whole picture shows.

Scenes that we draw ourselves come with the class under every patch. Asking the vision encoder for it
gives dozens of answers per picture instead of one caption, which a transformer trained from nothing
needs (compare token labelling, arXiv 2104.10858). The second asks the class token which classes
are in the picture, so that it has something to contrast with texts. The heads are thrown away afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Most patches show background; their share of the loss is held down.
BACKGROUND_WEIGHT = 0.1


class PatchLabelling(nn.Module):
    """Linear head over image states, and its loss."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes + 1)
        weight = torch.ones(classes + 1)
        weight[0] = BACKGROUND_WEIGHT
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, image_states: Tensor, patch_labels: Tensor) -> Tensor:
        """Image states `[B, 1 + g², W]`, labels `[B, g, g]` or `[B, g²]` (0 background, else class + 1) → loss."""
        logits = self.head(image_states[:, 1:]).float()
        return functional.cross_entropy(logits.flatten(0, 1), patch_labels.flatten().long(), weight=self.weight)

    def words(self, text_states: Tensor, labels: Tensor) -> Tensor:
        """The same head over text states `[T, L, W]`, labels `[T, L]` as of patches, 0 where a word names no class.

        One head for both: it brings the word for a thing near the patches that show it.
        """
        logits = self.head(text_states).float().flatten(0, 1)
        return functional.cross_entropy(logits, labels.flatten(), ignore_index=0)

    @torch.no_grad()
    def accuracy(self, image_states: Tensor, patch_labels: Tensor) -> float:
        """Share of the patches under objects that are named right."""
        predicted = self.head(image_states[:, 1:]).argmax(-1)
        labels = patch_labels.flatten(1)
        return ((predicted == labels) & (labels > 0)).sum().item() / max(1, (labels > 0).sum().item())


class ImageLabelling(nn.Module):
    """Linear head over the class token's state, and its loss: which classes does the picture show?"""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes + 1)

    def forward(self, image_states: Tensor, patch_labels: Tensor) -> Tensor:
        """Image states `[B, N, W]`, labels `[B, g, g]` as in `PatchLabelling` → cross-entropy.

        The classes of a picture share the target evenly; the background is no class.
        """
        logits = self.head(image_states[:, 0]).float()
        shown = torch.zeros_like(logits).scatter_(1, patch_labels.flatten(1).long(), 1.0)
        shown[:, 0] = 0.0
        targets = shown / shown.sum(1, keepdim=True).clamp(min=1.0)
        return -(torch.log_softmax(logits, dim=1) * targets).sum(1).mean()


class PatchBoxes(nn.Module):
    """Linear head over image states, and its loss: where is the object that this patch belongs to?"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 4)

    def forward(self, image_states: Tensor, boxes: Tensor) -> Tensor:
        """Image states `[B, 1 + P, W]`, boxes `[B, P, 4]` → mean absolute error over patches with an object.

        Boxes are centre x, centre y, width and height in shares of the picture, all zero where there is none.
        """
        shown = (boxes[..., 2] > 0).float()
        errors = (self.head(image_states[:, 1:]).float() - boxes).abs().mean(-1)
        return (errors * shown).sum() / shown.sum().clamp(min=1)


class PatchCounts(nn.Module):
    """Linear head over image states, and its loss: of what this patch shows, how many does the whole picture show?"""

    def __init__(self, width: int, most: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, most + 1)

    def forward(self, image_states: Tensor, counts: Tensor) -> Tensor:
        """Image states `[B, 1 + P, W]`, counts `[B, P]`, 0 where there is no object → cross-entropy over the others."""
        logits = self.head(image_states[:, 1:]).float().flatten(0, 1)
        return functional.cross_entropy(logits, counts.flatten(), ignore_index=0)
