"""The graphs that are compiled and served: a stage each, with the heads that read it.

The decoder becomes two: its prefill (cross-attention keys and values, once per request) and its step, which
holds the beam search as well, so that choices are all that leave it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mplug.contract import (
    DECODER_SCORE,
    ENCODERS,
    OPTIONAL_OUTPUTS,
    GraphSpec,
    decoder_prefill,
    decoder_step,
)
from mplug.inputs.normalisation import LEVELS
from mplug.network.beam_step import SearchState, beam_step
from mplug.network.mplug import MPlug


class VisionEncoderGraph(nn.Module):
    """`vision_encoder` of 8-bit pixels, with the contrastive projection of its class token where there is one."""

    def __init__(self, network: MPlug) -> None:
        super().__init__()
        self.encoder = network.vision_encoder
        self.projection = getattr(network, "vision_projection", None)
        # Of the network's type and on its device, which `mplug.runtime.torch` chooses before it takes the graphs.
        self.register_buffer("levels", torch.from_numpy(LEVELS).flatten().to(next(self.encoder.parameters())))

    def forward(self, pixels: Tensor, picture_box: Tensor, pixel_statistics: Tensor) -> tuple[Tensor, ...]:
        states = self.encoder(self.normalised(pixels, picture_box, pixel_statistics))
        return (states,) if self.projection is None else (states, self.projection(states[:, 0]))

    def normalised(self, pixels: Tensor, picture_box: Tensor, pixel_statistics: Tensor) -> Tensor:
        """Look up the values of pixels `[B, 3, R, R]`: `mplug.inputs.pixels.Pixels.normalised`, bit for bit."""
        _, colours, levels = LEVELS.shape
        places = torch.arange(pixels.shape[-1], dtype=torch.int32, device=pixels.device)
        first = torch.arange(colours, dtype=torch.int32, device=pixels.device) + colours * pixel_statistics  # [B, 3]
        # By way of floats: TensorRT takes bytes to nothing else.
        index = pixels.float().int() + levels * first[:, :, None, None]
        values = self.levels.index_select(0, index.flatten()).view(pixels.shape)
        left, top, right, bottom = picture_box.split(1, dim=1)  # [B, 1] each
        columns, rows = (places >= left) & (places < right), (places >= top) & (places < bottom)  # [B, R]
        shown = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(shown, values, torch.zeros_like(values[0, 0, 0, 0]))


class TextEncoderGraph(nn.Module):
    """`text_encoder`, with the contrastive projection of `[CLS]` where there is one."""

    def __init__(self, network: MPlug) -> None:
        super().__init__()
        self.encoder = network.text_encoder
        self.projection = getattr(network, "text_projection", None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        states = self.encoder(input_ids, attention_mask)
        return (states,) if self.projection is None else (states, self.projection(states[:, 0]))


class FusionEncoderGraph(nn.Module):
    """`fusion_encoder`, with the image-text matching head where there is one."""

    def __init__(self, network: MPlug) -> None:
        super().__init__()
        self.encoder = network.fusion_encoder
        self.head = getattr(network, "match_head", None)

    def forward(self, image_states: Tensor, text_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        image, text = self.encoder(image_states, text_states, attention_mask)
        if not self.encoder.has_connected_layer:
            image = image + 0.0  # an output of its own: compilers dislike an input that is also an output
        return (image, text) if self.head is None else (image, text, self.head(text[:, 0]))


class DecoderPrefillGraph(nn.Module):
    """The decoder's cross-attention keys and values."""

    def __init__(self, network: MPlug) -> None:
        super().__init__()
        self.decoder = network.text_decoder

    def forward(self, encoder_states: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for pair in self.decoder.prefill(encoder_states) for tensor in pair)


class DecoderStepGraph(nn.Module):
    """The decoder's step with the beam search in it: tokens, scores and ancestry go round, the caches stay."""

    def __init__(self, network: MPlug, end_id: int) -> None:
        super().__init__()
        self.decoder = network.text_decoder
        self.end_id = end_id
        self.layers = network.config.text.text_decode_layers

    def forward(
        self,
        tokens: Tensor,
        scores: Tensor,
        ancestry: Tensor,
        positions: Tensor,
        over: Tensor,
        encoder_mask: Tensor,
        prefix: Tensor,
        options: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        """Inputs and outputs as in `mplug.contract.decoder_step`."""
        pairs = list(zip(caches[::2], caches[1::2], strict=True))
        logits, written = self.decoder.step(
            tokens, positions, ancestry, encoder_mask, pairs[: self.layers], pairs[self.layers :]
        )
        state = SearchState(tokens, scores, ancestry, positions, over)
        following, parents = beam_step(logits, state, prefix, options, self.end_id)
        return *following, parents, torch.stack([tensor for pair in written for tensor in pair])


class DecoderScoreGraph(nn.Module):
    """Log-probabilities of given tokens; all texts of a run read the same encoder states."""

    def __init__(self, network: MPlug) -> None:
        super().__init__()
        self.decoder = network.text_decoder

    def forward(self, tokens: Tensor, targets: Tensor, encoder_states: Tensor, encoder_mask: Tensor) -> tuple[Tensor]:
        # Padding stands behind the text, where causal attention does not look.
        logits = self.decoder(tokens, encoder_states, encoder_mask).float()  # [P, L, V]
        # Written out: compilers make softmax and logarithm of log-softmax, which turns small probabilities into −inf.
        largest = logits.amax(-1, keepdim=True)
        log_sum = torch.log(torch.exp(logits - largest).sum(-1, keepdim=True))
        return (logits.gather(-1, targets.long()) - largest - log_sum,)


def graphs_of(network: MPlug, end_id: int) -> Iterator[tuple[GraphSpec, nn.Module]]:
    """Yield the graphs that this checkpoint needs, each with its specification, in the order of the flow.

    `end_id` is the id of `[SEP]`.
    """
    makers = {
        "vision_encoder": VisionEncoderGraph,
        "text_encoder": TextEncoderGraph,
        "fusion_encoder": FusionEncoderGraph,
    }
    for name, maker in makers.items():
        if hasattr(network, name):
            yield _with_heads_of(network, ENCODERS[name]), maker(network)
    if hasattr(network, "text_decoder"):
        layers = network.config.text.text_decode_layers
        yield decoder_prefill(layers), DecoderPrefillGraph(network)
        yield decoder_step(layers), DecoderStepGraph(network, end_id)
        if network.config.ranks_candidates:
            yield DECODER_SCORE, DecoderScoreGraph(network)


def _with_heads_of(network: MPlug, spec: GraphSpec) -> GraphSpec:
    outputs = tuple(
        output
        for output in spec.outputs
        if output.name not in OPTIONAL_OUTPUTS or hasattr(network, OPTIONAL_OUTPUTS[output.name])
    )
    return GraphSpec(spec.name, spec.inputs, outputs)
