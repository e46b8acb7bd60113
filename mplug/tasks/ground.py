"""Public model `ground`: an image and an expression → the box of what the expression describes.

    IMAGE → letterbox → vision_encoder ┐
          EXPRESSION  → text_encoder   ┴→ fusion_encoder → [image; text] → text_decoder → four tokens → BOX

As published: the decoder starts with `[unused339]` and greedily generates four tokens of `[unused340]`…`[unused340+R]`.
Their distances from `[unused340]`, divided by R, are centre x, centre y, width and height on the letterboxed image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mplug.contract import CallStage, Value, Values
from mplug.decoding.beam_search import SearchOptions
from mplug.inputs.images import decode_image
from mplug.inputs.pixels import Letterbox, Pixels
from mplug.tasks.checkpoint_files import ServedCheckpoint
from mplug.tasks.inputs import one_text, only, tokenised
from mplug.tasks.stages import (
    decode,
    encode_images,
    encode_texts,
    encoder_inputs,
    fuse_for_decoder,
    search_inputs,
    side_by_side,
)

START = 339  # the unused token of the vocabulary that the decoder starts from
FIRST_BIN = 340  # the unused token that stands for coordinate 0
BOX_TOKENS = 4


@dataclass(frozen=True)
class GroundRequest:
    """A checked request."""

    pixels: Pixels
    letterbox: Letterbox
    ids: np.ndarray  #: `[1, L]`
    mask: np.ndarray  #: `[1, L]`


class GroundTask:
    """Task of `mplug.tasks.interface.Task`."""

    def __init__(self, checkpoint: ServedCheckpoint) -> None:
        """Find the box tokens. Raises ValueError for a vocabulary without them."""
        self.config, self.tokenizer = checkpoint.config, checkpoint.tokenizer
        self.scale = checkpoint.trained_image_size
        names = [f"[unused{FIRST_BIN + index}]" for index in range(self.scale + 1)]
        try:
            ids = [self.tokenizer.token_id(name) for name in names]
            self.start = self.tokenizer.token_id(f"[unused{START}]")
        except KeyError as error:
            needed = f"grounding at {self.scale} pixels needs {names[0]} to {names[-1]}"
            raise ValueError(f"{needed}: {error.args[0]}") from None
        self.first = ids[0]
        if ids != list(range(self.first, self.first + len(ids))):
            raise ValueError(f"the vocabulary's {names[0]} to {names[-1]} are not consecutive")

    def parse(self, inputs: Mapping[str, Value]) -> GroundRequest:
        """Check all inputs before any stage is called. Raises InvalidRequest."""
        expression = one_text(inputs, "EXPRESSION")
        image = decode_image(only(inputs, "IMAGE"), name="IMAGE")
        pixels, letterbox = Pixels.letterboxed(image, self.config.vision.image_size, self.config.grounding_statistics)
        ids, mask = tokenised(self.tokenizer, {"EXPRESSION": expression}, self.config.max_text_length)
        return GroundRequest(pixels, letterbox, ids, mask)

    async def run(self, request: GroundRequest, call_stage: CallStage) -> Values:
        """Run the stages; return BOX (corners, pixels of the upright image) and BOX_TOKENS."""
        states, _ = await encode_images(call_stage, self.config, request.pixels)
        text = await encode_texts(call_stage, self.config, request.ids, request.mask)
        read = encoder_inputs(*await fuse_for_decoder(call_stage, side_by_side(states), text))
        greedy = SearchOptions(1, 0, BOX_TOKENS, 1, 0.0, self.tokenizer.sep_id)
        found = await decode(
            call_stage,
            {
                **read,
                **search_inputs(greedy),
                "PROMPT_IDS": np.array([self.start], np.int32),
                "TOKEN_RANGE": np.array([self.first, self.first + self.scale + 1], np.int32),
            },
        )
        tokens = found["TOKEN_IDS"][0, 1:]  # without the start token
        box = request.letterbox.to_image((tokens - self.first) / self.scale)
        return {"BOX": np.array(box, np.float32), "BOX_TOKENS": np.ascontiguousarray(tokens, np.int32)}
