"""Public models `nlvr` (is a statement true of two images?) and `entail` (does an image entail a hypothesis?).

    IMAGE → vision_encoder ┐
     text → text_encoder   ┴→ fusion_encoder → [CLS] of the fused text → head → LABEL, PROBABILITY

The authors report results of both but published no code. Our head: a linear layer, ReLU, a linear layer. For `nlvr`
each image is fused with the statement, and the head reads the two `[CLS]` states concatenated. It takes microseconds,
so it runs here in NumPy, from weights that `builders/build.py` writes beside the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mplug.contract import ENTAILMENT_LABELS, NLVR_LABELS, CallStage, Value, Values
from mplug.errors import InvalidRequest
from mplug.inputs.images import decode_image
from mplug.inputs.pixels import Pixels
from mplug.tasks.checkpoint_files import Head, ServedCheckpoint
from mplug.tasks.inputs import one_text, tokenised
from mplug.tasks.stages import EncodedText, encode_images, encode_texts, fuse


@dataclass(frozen=True)
class JudgementRequest:
    """A checked request."""

    pixels: Pixels
    ids: np.ndarray  #: `[1, L]`
    mask: np.ndarray  #: `[1, L]`


class _JudgementTask:
    """Parsing and stages of both: `images` images, one text, one head."""

    images = 1
    text_input = ""

    def __init__(self, checkpoint: ServedCheckpoint, head: Head) -> None:
        self.config, self.tokenizer, self.head = checkpoint.config, checkpoint.tokenizer, head

    def parse(self, inputs: Mapping[str, Value]) -> JudgementRequest:
        """Check all inputs before any stage is called. Raises InvalidRequest."""
        text = one_text(inputs, self.text_input, clean=True)
        images = inputs.get("IMAGE")
        if not isinstance(images, list) or len(images) != self.images:
            found = len(images) if isinstance(images, list) else 0
            raise InvalidRequest(f"IMAGE: holds {found} images, but must hold {self.images}")
        names = ["IMAGE"] if self.images == 1 else [f"IMAGE[{index}]" for index in range(self.images)]
        size = self.config.vision.image_size
        pictures = [decode_image(data, name=name) for data, name in zip(images, names, strict=True)]
        ids, mask = tokenised(self.tokenizer, {self.text_input: text}, self.config.max_text_length)
        return JudgementRequest(Pixels.of_images(pictures, size), ids, mask)

    async def probabilities(self, request: JudgementRequest, call_stage: CallStage) -> np.ndarray:
        """Fuse each image with the text; return what the head makes of the concatenated `[CLS]` states."""
        states, _ = await encode_images(call_stage, self.config, request.pixels)
        text = await encode_texts(call_stage, self.config, request.ids, request.mask)
        repeated = EncodedText(
            np.repeat(text.states, self.images, axis=0), np.repeat(text.mask, self.images, axis=0), None
        )
        fused = await fuse(call_stage, states, repeated, ["FUSED_TEXT_STATES"])
        return self.head.probabilities(fused["FUSED_TEXT_STATES"][:, 0].reshape(-1)).astype(np.float32)


class NlvrTask(_JudgementTask):
    """Two IMAGEs, STATEMENT → LABEL `true` or `false`, and its PROBABILITY `[1]`."""

    images = 2
    text_input = "STATEMENT"

    async def run(self, request: JudgementRequest, call_stage: CallStage) -> Values:
        """Run the stages; return LABEL and the probability of that label."""
        probabilities = await self.probabilities(request, call_stage)
        best = int(probabilities.argmax())
        return {"LABEL": [NLVR_LABELS[best].encode()], "PROBABILITY": probabilities[best : best + 1]}


class EntailTask(_JudgementTask):
    """IMAGE, HYPOTHESIS → LABEL, and the PROBABILITY `[3]` of contradiction, neutral and entailment."""

    text_input = "HYPOTHESIS"

    async def run(self, request: JudgementRequest, call_stage: CallStage) -> Values:
        """Run the stages; return LABEL and the probabilities of all classes, in the order of `ENTAILMENT_LABELS`."""
        probabilities = await self.probabilities(request, call_stage)
        return {"LABEL": [ENTAILMENT_LABELS[int(probabilities.argmax())].encode()], "PROBABILITY": probabilities}
