"""Stage `vision_encoder`: CLIP's vision transformer, and the bridge to the text width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mplug.config import CLIP_HEAD_WIDTH, STEM_GROUPS, MPlugConfig
from mplug.network.attention import attention

CLIP_LAYER_NORM_EPS = 1e-5


def quick_gelu(hidden: Tensor) -> Tensor:
    """Apply CLIP's activation, x·sigmoid(1.702 x)."""
    if torch.compiler.is_exporting():
        return hidden * torch.sigmoid(1.702 * hidden)  # the form that compilers know as one operator
    return functional.silu(1.702 * hidden) * (1 / 1.702)  # PyTorch's fused form, and less to keep for training


class VisionBlock(nn.Module):
    """Pre-norm transformer block with QuickGELU (CLIP, arXiv 2103.00020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // CLIP_HEAD_WIDTH
        self.norm_attention = nn.LayerNorm(width, eps=CLIP_LAYER_NORM_EPS)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm_feed_forward = nn.LayerNorm(width, eps=CLIP_LAYER_NORM_EPS)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Transform states `[B, N, width]`; the shape stays."""
        packed = self.query_key_value(self.norm_attention(states))
        query, key, value = packed.unflatten(-1, (3, self.heads, CLIP_HEAD_WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
        states = states + self.output(attention(query, key, value, None).transpose(1, 2).flatten(2))
        hidden = self.expand(self.norm_feed_forward(states))
        return states + self.contract(quick_gelu(hidden))


class ConvolutionalStem(nn.Module):
    """Pixels → one embedding per patch, by overlapping convolutions in place of one convolution per patch.

    A transformer trained from nothing learns faster and further on top of a few convolutions ("Early convolutions
    help transformers see better", arXiv 2106.14881). The first takes 4 x 4 pixels apart, each further one halves the
    side; norms are over groups of channels, so that no picture depends on the others of its batch.
    """

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList(nn.GroupNorm(STEM_GROUPS, count, eps=CLIP_LAYER_NORM_EPS) for count in channels)
        entering = 3
        for index, count in enumerate(channels):
            sizes = {"kernel_size": 3, "stride": 2, "padding": 1} if index else {"kernel_size": 4, "stride": 4}
            self.convolutions.append(nn.Conv2d(entering, count, **sizes))
            entering = count
        self.output = nn.Conv2d(entering, width, kernel_size=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed normalised pixels `[B, 3, R, R]` as `[B, width, g, g]`, g = R / patch."""
        hidden = pixel_values.contiguous(memory_format=torch.channels_last)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = norm(convolution(hidden)).relu()
        return self.output(hidden)


class VisionEncoder(nn.Module):
    """Pixels → image states, one per patch behind one class token."""

    def __init__(self, config: MPlugConfig) -> None:
        super().__init__()
        vision = config.vision
        self.patch_embedding: nn.Module = (
            ConvolutionalStem(vision.stem, vision.width)
            if vision.stem
            else nn.Conv2d(3, vision.width, vision.patch_size, vision.patch_size, bias=False)
        )
        self.class_embedding = nn.Parameter(torch.zeros(vision.width))
        self.position_embedding = nn.Parameter(torch.zeros(vision.tokens, vision.width))
        self.norm_in = nn.LayerNorm(vision.width, eps=CLIP_LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(VisionBlock(vision.width) for _ in range(vision.layers))
        self.norm_out = nn.LayerNorm(vision.width, eps=CLIP_LAYER_NORM_EPS)
        if config.projects_vision:
            self.projection: nn.Module = nn.Sequential(
                nn.Linear(vision.width, config.text.hidden_size),
                nn.LayerNorm(config.text.hidden_size, eps=config.text.layer_norm_eps),
            )
        else:
            self.projection = nn.Identity()

    @torch.no_grad()
    def initialise_positions(self) -> None:
        """Set positions to sines and cosines of row and column: better than noise for small transformers.

        Source: "Better plain ViT baselines for ImageNet-1k" (arXiv 2205.01580).
        """
        tokens, width = self.position_embedding.shape
        side = round((tokens - 1) ** 0.5)
        frequencies = 10_000 ** -torch.linspace(0, 1, width // 4)
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        angles = [axis.reshape(-1, 1) * frequencies for axis in (row, column)]
        waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
        self.position_embedding[1:] = 0.5 * torch.cat(waves, dim=1)

    def forward(self, pixel_values: Tensor, kept: Tensor | None = None) -> Tensor:
        """Encode normalised pixels `[B, 3, R, R]` into image states `[B, N, W]`, N = 1 + (R / patch)².

        `kept` `[B, K]`: indices of the patches to work on, for cheaper training; then N = 1 + K
        (PatchDropout, arXiv 2208.07220).
        """
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [B, N-1, width]
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1).to(patches.dtype)
        states = torch.cat([class_token, patches], dim=1) + self.position_embedding
        if kept is not None:
            chosen = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1)
            states = states.gather(1, chosen[:, :, None].expand(-1, -1, states.shape[-1]))
        states = self.norm_in(states)
        for block in self.blocks:
            states = block(states)
        return self.projection(self.norm_out(states))


def resample_positions(position_embedding: Tensor, grid: int) -> Tensor:
    """Resample a position embedding `[1 + g², width]` to `[1 + grid², width]`.

    The part that belongs to the patches is resampled bilinearly, as the published code does when a
    checkpoint is used at another image size; the class token keeps its own.
    """
    class_position, patch_positions = position_embedding[:1], position_embedding[1:]
    stored = round(patch_positions.shape[0] ** 0.5)
    if stored**2 != patch_positions.shape[0]:
        raise ValueError(f"{patch_positions.shape[0]} patch positions do not form a square grid")
    if stored == grid:
        return position_embedding
    square = patch_positions.float().T.reshape(1, -1, stored, stored)
    square = functional.interpolate(square, size=(grid, grid), mode="bilinear", align_corners=False)
    # Kept in fp32 even where the checkpoint is stored in half precision.
    return torch.cat([class_position.float(), square.flatten(2)[0].T])
