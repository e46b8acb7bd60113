"""Public model `caption`: an encoded image, several frames or a video → captions.

    IMAGE/VIDEO → decode, resize → vision_encoder ─┬─────────────────────────────────→ text_decoder → CAPTION
                          PROMPT → text_encoder → fusion_encoder (where the captioner reads fused states)

Published captioners decode from the image states alone, starting with the prompt as the tokenizer reads it. Ours
decodes from the states of the image fused with the prompt, which is cleaned like captions. The checkpoint's
`caption_states` says which. The states of several frames are concatenated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mplug.contract import CallStage, Value, Values
from mplug.decoding.beam_search import SearchOptions
from mplug.decoding.request import check_positions, parse_search_options
from mplug.inputs.pixels import Pixels
from mplug.tasks.checkpoint_files import ServedCheckpoint
from mplug.tasks.inputs import check_tokens, one_text, visual
from mplug.tasks.stages import (
    SEARCH_OPTIONS,
    decode,
    encode_images,
    encode_texts,
    encoder_inputs,
    fuse_for_decoder,
    search_inputs,
    side_by_side,
)


@dataclass(frozen=True)
class CaptionRequest:
    """A checked request."""

    pixels: Pixels  #: one image or the frames of a video
    prompt: str
    search: SearchOptions


class CaptionTask:
    """Task of `mplug.tasks.interface.Task`."""

    def __init__(self, checkpoint: ServedCheckpoint) -> None:
        self.config, self.tokenizer = checkpoint.config, checkpoint.tokenizer

    def parse(self, inputs: Mapping[str, Value]) -> CaptionRequest:
        """Check all inputs before any stage is called. Raises InvalidRequest."""
        options = {name: np.asarray(inputs[name]) for name in SEARCH_OPTIONS if name in inputs}
        search = parse_search_options(options, self.config.generation, self.tokenizer.sep_id)
        prompt = self.config.prompt
        if "PROMPT" in inputs:
            prompt = one_text(inputs, "PROMPT", clean=self.config.caption_states == "fused")
            check_tokens("PROMPT", len(self.tokenizer.pieces(prompt)), self.config.max_text_length - 2)
        check_positions(options, search, len(self._prefix(prompt)), self.config.text.max_positions)
        return CaptionRequest(visual(inputs, self.config), prompt, search)

    async def run(self, request: CaptionRequest, call_stage: CallStage) -> Values:
        """Run the stages; return CAPTION, SCORE and TOKEN_IDS, best first."""
        states, _ = await encode_images(call_stage, self.config, request.pixels)
        states = side_by_side(states)
        if self.config.caption_states == "fused":
            read = await self._fused(states, request.prompt, call_stage)
        else:
            read = encoder_inputs(states[0])
            read["PROMPT_IDS"] = np.array(self._prefix(request.prompt), np.int32)
        # All options, because checkpoints may share a decoder, which has the defaults of one of them.
        found = await decode(call_stage, {**read, **search_inputs(request.search)})
        captions = [self.tokenizer.decode(ids.tolist()).encode() for ids in found["TOKEN_IDS"]]
        return {"CAPTION": captions, "SCORE": found["SCORE"], "TOKEN_IDS": found["TOKEN_IDS"]}

    def _prefix(self, prompt: str) -> list[int]:
        """Return the ids that the decoder starts from; a fused prompt is read by the text encoder instead."""
        fused = self.config.caption_states == "fused"
        return [self.tokenizer.cls_id, *([] if fused else self.tokenizer.pieces(prompt))]

    async def _fused(self, image_states: np.ndarray, prompt: str, call_stage: CallStage) -> Values:
        ids, mask = self.tokenizer.encode(prompt, len(self.tokenizer.pieces(prompt)) + 2)
        text = await encode_texts(call_stage, self.config, ids[None], mask[None])
        return encoder_inputs(*await fuse_for_decoder(call_stage, image_states, text))
