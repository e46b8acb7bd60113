"""The demo's learner: the network, heads that training alone needs, and the losses of a leg of the curriculum."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from builders.train.batches import Batch
from builders.train.engine import Learner
from builders.train.fused_states import FusedStates, mean_over_tokens, token_losses, token_mask
from builders.train.objectives.captioning import caption_loss, decoder_source
from builders.train.objectives.contrastive import ALPHA, Contrast, ImageTextContrast
from builders.train.objectives.grounding import BoxIds, near_boxes
from builders.train.objectives.masked_language import MaskedLanguageHead, SpecialIds, masked_language_loss
from builders.train.objectives.matching import hard_negatives
from builders.train.objectives.prefix_language import prefix_language_loss
from demo.training.batches import MOST_COUNTED, SCENE_SIZE, normalise, object_patches, scene_tokenizer
from demo.training.legs import PRETRAINING, Leg
from demo.training.look import SCENES, look
from demo.training.patch_labelling import ImageLabelling, PatchBoxes, PatchCounts, PatchLabelling
from demo.training.word_grounding import GuidedLooks, NamedThings
from mplug.network import MPlug

CLASSES = 250
QUEUE = 4096  # features kept by the contrastive objective
TEXT_GRADIENT_SHARE = 0.3  # of the gradients of texts that reach the vision encoder, which labels teach in full
NEAR_BINS = 2.0  # pixels that a box token may be off and still be nearly right


class DemoLearner(Learner):
    """The network and its heads; `leg` says which objectives run, and may change between runs."""

    every_parameter = False  # a leg trains what its objectives reach

    def __init__(self, network: MPlug, leg: Leg, *, queue_size: int = QUEUE, validation_scenes: int = SCENES) -> None:
        super().__init__()
        self.leg, self.validation_scenes = leg, validation_scenes
        width = network.config.text.hidden_size
        self.network = network
        self.patches = PatchLabelling(width, CLASSES)
        self.classes = ImageLabelling(width, CLASSES)
        self.places = PatchBoxes(width)
        self.counts = PatchCounts(width, MOST_COUNTED)
        self.named = NamedThings(width, MOST_COUNTED)
        self.masked = MaskedLanguageHead(network.config.text)
        self.contrast = ImageTextContrast(network, queue_size=queue_size)
        tokenizer = scene_tokenizer()
        self.special = SpecialIds(tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        self.box_ids = BoxIds.of(tokenizer, SCENE_SIZE)
        self.looks = GuidedLooks(network.fusion_encoder)
        pieces = tokenizer.pieces(network.config.prompt)
        self.prompt_ids = torch.tensor([tokenizer.cls_id, *pieces, tokenizer.sep_id])
        self._pending: list[Contrast] = []

    def weight_of(self, loss: str) -> float:
        """See `Learner`."""
        return self.leg.weights[loss]

    def after_batch(self) -> None:
        """See `Learner`."""
        while self._pending:
            self.contrast.enqueue(self._pending.pop())

    def after_step(self) -> None:
        """See `Learner`."""
        if "contrast" in self.leg.weights:
            self.contrast.update_momentum(self.network)

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Measure every task that the leg trains on fixed scenes (`look`)."""
        tasks = any(name not in PRETRAINING for name in self.leg.weights)
        found = look(self.network, self.patches, tasks=tasks, scenes=self.validation_scenes)
        return {f"{split} {name}": value for split, scores in found.items() for name, value in scores.items()}

    def forward(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """See `Learner`; the share of the momentum encoders in the contrast's targets grows with `done`."""
        leg, network = self.leg, self.network
        pixels = normalise(batch["images"])
        kept = None if leg.kept_patches is None else object_patches(batch["labels"], leg.kept_patches)
        states = network.vision_encoder(pixels, kept)
        worked_on = _of_patches(batch["labels"], kept)
        losses = {
            "patches": self.patches(states, worked_on),
            "counts": self.counts(states, _of_patches(batch["counts"], kept)),
            "places": self.places(states, _of_patches(batch["boxes"], kept)),
            "classes": self.classes(states, batch["labels"]),
        }
        wanted, mixture = leg.weights, leg.mixture
        pooled, states = states, states.detach().lerp(states, TEXT_GRADIENT_SHARE)
        if mixture is not None:
            self._read_texts(losses, pooled, states, pixels, kept, worked_on, batch, ALPHA * done)
        if "masked" in wanted:
            some = _some(states, mixture.masked)
            losses["masked"] = masked_language_loss(
                network, self.masked, states, batch["texts"][some], self.special, image_index=some
            )
        if "prefix" in wanted:
            some = _some(states, mixture.prefixes)
            losses["prefix"] = prefix_language_loss(
                network, states, batch["texts"][some], self.special.cls_id, self.special.sep_id, image_index=some
            )
        if "caption" in wanted:
            some = _some(states, mixture.captions)
            source = decoder_source(network, states[some], self.prompt_ids)
            losses["caption"] = caption_loss(network, source, batch["captions"][some])
        return losses

    def _read_texts(
        self,
        losses: dict[str, Tensor],
        pooled: Tensor,
        states: Tensor,
        pixels: Tensor,
        kept: Tensor | None,
        labels: Tensor,
        batch: Batch,
        alpha: float,
    ) -> None:
        """Add the losses of all texts that are fused with an image, in one pass of the encoders over all."""
        leg, network, rows = self.leg, self.network, self.leg.mixture.rows()
        ids, images = batch["row_ids"], batch["row_image"]
        mask = token_mask(ids)
        texts = network.text_encoder(ids, mask)
        losses["words"] = self.patches.words(texts, batch["row_words"])
        part = rows["captions"]
        # The caption's [CLS] names what the picture's does: a start for the contrast of the two.
        losses["classes"] = losses["classes"] + self.classes(texts[part], batch["labels"][part])
        contrast = self.contrast(
            network,
            pooled[part],
            texts[part],
            pixels[part],
            ids[part],
            mask[part],
            kept=None if kept is None else kept[part],
            ids=batch["text_id"][part],
            alpha=alpha,
        )
        self._pending.append(contrast)
        losses["contrast"] = contrast.loss
        hard_images, hard_texts = self._hard_pairs(contrast, batch["text_id"][part], leg.mixture.matches)
        order = torch.cat([torch.arange(len(ids)), hard_texts])
        images, mask = torch.cat([images, hard_images]), mask[order]
        fused = FusedStates(*network.fusion_encoder(states[images], texts[order], mask), mask)
        losses["looks"] = self.looks.loss(batch["row_words"], batch["row_image"], labels)
        losses["named"] = self.named(fused.text[: len(ids)], batch["row_counts"], batch["row_boxes"])
        first = fused.text[:, 0]
        judged = torch.cat([first[part], first[rows["wrong"]], first[len(ids) :]])
        right = (torch.arange(len(judged)) < leg.mixture.contrasted).long()
        losses["matching"] = functional.cross_entropy(network.match_head(judged).float(), right)
        if "answers" not in leg.weights:
            return
        losses["answers"] = (
            token_losses(network, self._source(fused, rows["questions"]), batch["answer_ids"]).sum(1).mean()
        )
        box_ids = batch["box_ids"]
        near = near_boxes(box_ids, self.box_ids, network.config.text.vocab_size, NEAR_BINS)
        losses["boxes"] = mean_over_tokens(
            token_losses(network, self._source(fused, rows["expressions"]), box_ids, near, 1.0), box_ids
        )
        places = (box_ids[:, 1:] - self.box_ids.first_bin) / (self.box_ids.bins - 1)
        losses["pointed"] = self.named.pointed(first[rows["expressions"]], places)
        entailed = network.entail_head(first[rows["hypotheses"]]).float()
        losses["entailment"] = functional.cross_entropy(entailed, batch["entail_label"])
        both = torch.cat([first[rows["statements_left"]], first[rows["statements_right"]]], dim=-1)
        losses["nlvr"] = functional.cross_entropy(network.nlvr_head(both).float(), batch["nlvr_label"])

    def _source(self, fused: FusedStates, rows: slice) -> tuple[Tensor, Tensor]:
        """What the decoder reads for some rows."""
        return self.network.decoder_input(*(states[rows] for states in fused))

    @staticmethod
    def _hard_pairs(contrast: Contrast, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Images and captions `[count]` that do not belong together, but seem to the contrast."""
        images, wrong_texts = (found[: count // 2] for found in hard_negatives(contrast.image_to_text, ids))
        texts, wrong_images = (found[: count - count // 2] for found in hard_negatives(contrast.text_to_image, ids))
        return torch.cat([images, wrong_images]), torch.cat([wrong_texts, texts])


def _of_patches(values: Tensor, kept: Tensor | None) -> Tensor:
    """Values of all patches, `[B, g, g, …]` → of those that are worked on, `[B, P, …]`."""
    values = values.flatten(1, 2)
    return values if kept is None else values[torch.arange(len(kept))[:, None], kept]


def _some(states: Tensor, count: int) -> Tensor:
    """Indices of some images of a batch, `[count]`."""
    return torch.randperm(len(states))[:count]
