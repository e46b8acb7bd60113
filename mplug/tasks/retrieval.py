"""Public models `embed_image`, `embed_text` and `match`: retrieval in two steps.

The first two return unit vectors, whose dot product makes a shortlist. The third runs the pairs of a shortlist through
the fusion encoder, whose matching head ranks them (arXiv 2205.12005, section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mplug.contract import CallStage, Value, Values
from mplug.inputs.pixels import Pixels
from mplug.tasks.checkpoint_files import ServedCheckpoint
from mplug.tasks.inputs import is_video, many_texts, one_text, tokenised, visual
from mplug.tasks.stages import EncodedText, encode_images, encode_texts, fuse, normalised, side_by_side

MAX_TEXTS = 256  # as long as the published shortlist
#: Texts per call of the text encoder: its `max_batch_size`.
TEXTS_PER_CALL = 64
#: Bytes of image states per call of the fusion encoder; each pair holds a copy of them.
BYTES_PER_CALL = 32 << 20
#: Pairs per call of the fusion encoder: its `max_batch_size`.
PAIRS_PER_CALL = 64
MATCHES = 1  # index of the matching head's logit for "image and text match"


class _RetrievalTask:
    """Checkpoint and tokenizer of all three."""

    def __init__(self, checkpoint: ServedCheckpoint) -> None:
        self.config, self.tokenizer = checkpoint.config, checkpoint.tokenizer

    def _tokenised(self, texts: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
        length, final_sep = self.config.max_text_length, self.config.final_sep
        return tokenised(self.tokenizer, texts, length, final_sep=final_sep)


class EmbedImageTask(_RetrievalTask):
    """IMAGE, or the frames of a video → FEATURE `[E]`, a unit vector."""

    def parse(self, inputs: Mapping[str, Value]) -> Pixels:
        """Return the picture, or the frames. Raises InvalidRequest."""
        return visual(inputs, self.config)

    async def run(self, request: Pixels, call_stage: CallStage) -> Values:
        """Return FEATURE; the projections of frames are averaged, then normalised, as published for video."""
        _, projections = await encode_images(call_stage, self.config, request)
        return {"FEATURE": normalised(projections.mean(0))}


class EmbedTextTask(_RetrievalTask):
    """TEXT → FEATURE `[E]`, a unit vector."""

    def parse(self, inputs: Mapping[str, Value]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and mask `[1, L]` of the text, cleaned as in training. Raises InvalidRequest."""
        return self._tokenised({"TEXT": one_text(inputs, "TEXT", clean=True)})

    async def run(self, request: tuple[np.ndarray, np.ndarray], call_stage: CallStage) -> Values:
        """Return FEATURE."""
        text = await encode_texts(call_stage, self.config, *request)
        return {"FEATURE": normalised(text.projections[0])}


@dataclass(frozen=True)
class MatchRequest:
    """A checked request."""

    pixels: Pixels  #: one image or the frames of a video
    video: bool
    ids: np.ndarray  #: `[k, L]`
    mask: np.ndarray  #: `[k, L]`


class MatchTask(_RetrievalTask):
    """IMAGE or VIDEO, TEXT `[k]` → SCORE `[k]` (logit of the matching head) and SIMILARITY `[k]` (of the embeddings).

    For a video, the states of its frames are concatenated and the similarity is added to the logit, as in the published
    zero-shot retrieval (`retrieval_vid_mplug.py`).
    """

    def parse(self, inputs: Mapping[str, Value]) -> MatchRequest:
        """Check all inputs before any stage is called. Raises InvalidRequest."""
        texts = many_texts(inputs, "TEXT", MAX_TEXTS, clean=True)
        pixels = visual(inputs, self.config)
        return MatchRequest(pixels, is_video(inputs), *self._tokenised(texts))

    async def run(self, request: MatchRequest, call_stage: CallStage) -> Values:
        """Run the stages; return SCORE and SIMILARITY, in the order of the texts."""
        states, projections = await encode_images(call_stage, self.config, request.pixels)
        states, feature = side_by_side(states), normalised(projections.mean(0))
        pairs = max(1, min(PAIRS_PER_CALL, BYTES_PER_CALL // states.nbytes))
        scores, similarities = [], []
        for start in range(0, len(request.ids), TEXTS_PER_CALL):
            rows = slice(start, start + TEXTS_PER_CALL)
            texts = await encode_texts(call_stage, self.config, request.ids[rows], request.mask[rows])
            similarities.append(normalised(texts.projections) @ feature)
            for begin in range(0, len(texts.states), pairs):
                some = slice(begin, begin + pairs)
                chunk = EncodedText(texts.states[some], texts.mask[some], None)
                image = np.broadcast_to(states, (len(chunk.states), *states.shape[1:]))
                fused = await fuse(call_stage, image, chunk, ["MATCH_LOGITS"])
                scores.append(fused["MATCH_LOGITS"][:, MATCHES])
        score, similarity = np.concatenate(scores), np.concatenate(similarities)
        return {"SCORE": score + similarity if request.video else score, "SIMILARITY": similarity}
