"""What pixels are normalised with, as a table that the door, the training and the compiled vision encoder share.

NumPy alone: PyTorch's stages are measured on machines that have nothing else.
"""

from __future__ import annotations

import numpy as np

from mplug.contract import PIXEL_STATISTICS

# CLIP's statistics of RGB scaled to 0…1 (Radford et al. 2021, arXiv 2103.00020, published preprocessing).
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

# ImageNet's, which the authors' evaluation script of grounding leaves at their defaults.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


def _levels(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The normalised value of each of the 256 levels, [3, 256]."""
    return (np.arange(256, dtype=np.float32) / np.float32(255) - mean[:, None]) / std[:, None]


_STATISTICS = {"clip": (PIXEL_MEAN, PIXEL_STD), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}

#: Normalised values, fp32 `[statistics, 3, 256]`, by index into `PIXEL_STATISTICS`, colour and level. Looking levels up
#: gives bit for bit what the arithmetic on whole images gives, in a graph of half precision, too.
LEVELS = np.stack([_levels(*_STATISTICS[name]) for name in PIXEL_STATISTICS])
