"""One learner per task: which losses a batch gives, and what is measured on the way.

`LEARNERS[task](network, tokenizer)`; the batches are those of `builders.train.batches`. What is measured here is quick
(greedy decoding, one pass); figures to report come from `builders/evaluate.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from builders.evaluation.boxes import ENOUGH, iou
from builders.train.batches import Batch
from builders.train.distributed import rows_of_all
from builders.train.engine import Learner
from builders.train.fused_states import fuse, token_mask
from builders.train.generation import generate
from builders.train.objectives.answering import answer_loss, soft_answers
from builders.train.objectives.captioning import caption_loss, decoder_source
from builders.train.objectives.contrastive import ALPHA, MOMENTUM, ImageTextContrast
from builders.train.objectives.grounding import BoxIds, greedy_boxes, grounding_loss
from builders.train.objectives.judgement import entail_logits, entail_loss, nlvr_logits, nlvr_loss
from builders.train.objectives.masked_language import MaskedLanguageHead, SpecialIds, masked_language_loss
from builders.train.objectives.matching import matching_loss
from builders.train.objectives.prefix_language import prefix_language_loss
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug

RAMP = 0.1  # of the run, over which the share of soft targets grows to its full size


def freeze_all_but(network: MPlug, parts: Iterable[str]) -> None:
    """Parts of the checkpoint that a task does not use stay as they are."""
    used = set(parts)
    for name, part in network.named_children():
        if name not in used:
            part.requires_grad_(False)


def ramped(alpha: float, done: float, ramp: float = RAMP) -> float:
    """The share of soft targets when the share `done` of the run is behind."""
    return alpha * min(1.0, done / ramp) if ramp else alpha


class PairLearner(Learner):
    """Contrast and matching; what pre-training and retrieval have in common."""

    parts = ("vision_encoder", "text_encoder", "fusion_encoder", "vision_projection", "text_projection", "match_head")

    def __init__(
        self,
        network: MPlug,
        tokenizer: Tokenizer,
        *,
        queue_size: int = 65_536,
        alpha: float = ALPHA,
        ramp: float = RAMP,
    ) -> None:
        super().__init__()
        freeze_all_but(network, self.parts)
        self.network, self.tokenizer, self.alpha, self.ramp = network, tokenizer, alpha, ramp
        self.contrast = ImageTextContrast(network, queue_size=queue_size)
        self._waiting: list = []

    def forward(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """See `Learner`."""
        return self.losses(batch, done, self.network.vision_encoder(batch["pixel_values"]))

    def losses(self, batch: Batch, done: float, image_states: Tensor) -> dict[str, Tensor]:
        """The two losses, of images that have been encoded."""
        network, ids = self.network, batch["text_ids"]
        mask = token_mask(ids)
        text_states = network.text_encoder(ids, mask)
        found = self.contrast(
            network,
            image_states,
            text_states,
            batch["pixel_values"],
            ids,
            mask,
            ids=batch["pair_ids"],
            alpha=ramped(self.alpha, done, self.ramp),
        )
        self._waiting.append(found)
        matching = matching_loss(
            network, image_states, text_states, mask, found.image_to_text, found.text_to_image, ids=batch["pair_ids"]
        )
        return {"contrast": found.loss, "matching": matching}

    def after_batch(self) -> None:
        """See `Learner`."""
        while self._waiting:
            self.contrast.enqueue(self._waiting.pop())

    def after_step(self) -> None:
        """See `Learner`."""
        self.contrast.update_momentum(self.network)

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """R@1 by similarity alone, both ways, among all validation pairs."""
        images, texts, pair_ids = [], [], []
        for batch in batches:
            ids = batch["text_ids"]
            images.append(self.network.image_feature(self.network.vision_encoder(batch["pixel_values"])).float())
            texts.append(self.network.text_feature(self.network.text_encoder(ids, token_mask(ids))).float())
            pair_ids.append(batch["pair_ids"])
        all_images, all_texts, ids = rows_of_all(images), rows_of_all(texts), rows_of_all(pair_ids)
        if ids is None:
            return {}
        similarity = all_images @ all_texts.T
        return {
            "text R@1": (ids[similarity.argmax(1)] == ids).float().mean().item(),
            "image R@1": (ids[similarity.argmax(0)] == ids).float().mean().item(),
        }


class RetrievalLearner(PairLearner):
    """Published fine-tuning for retrieval: the pairs' two losses."""


class PretrainLearner(PairLearner):
    """All four objectives on one text per image."""

    parts = (*PairLearner.parts, "text_decoder")

    def __init__(self, network: MPlug, tokenizer: Tokenizer, **options: object) -> None:
        super().__init__(network, tokenizer, **options)
        self.head = MaskedLanguageHead(network.config.text)
        self.special = SpecialIds(tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)

    def losses(self, batch: Batch, done: float, image_states: Tensor) -> dict[str, Tensor]:
        """The four losses."""
        network, ids = self.network, batch["text_ids"]
        return {
            **super().losses(batch, done, image_states),
            "masked language": masked_language_loss(network, self.head, image_states, ids, self.special),
            "prefix language": prefix_language_loss(
                network, image_states, ids, self.tokenizer.cls_id, self.tokenizer.sep_id
            ),
        }

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """R@1, and how often the rest of a text is written exactly, from an empty first part."""
        batches = list(batches)
        exact = []
        for batch in batches:
            network, ids = self.network, batch["text_ids"]
            empty = torch.zeros_like(ids[:, :2])
            empty[:, 0], empty[:, 1] = self.tokenizer.cls_id, self.tokenizer.sep_id
            source = network.decoder_input(*fuse(network, network.vision_encoder(batch["pixel_values"]), empty))
            exact.append(exactly(network, source, ids, self.tokenizer))
        written = rows_of_all(exact)
        texts = {} if written is None else {"texts written exactly": written.mean().item()}
        return {**super().validate(batches), **texts}


class CaptionLearner(Learner):
    """Captions by cross-entropy."""

    def __init__(self, network: MPlug, tokenizer: Tokenizer) -> None:
        super().__init__()
        fused = network.config.caption_states == "fused"
        freeze_all_but(
            network, ("vision_encoder", "text_decoder", *(("text_encoder", "fusion_encoder") if fused else ()))
        )
        self.network, self.tokenizer = network, tokenizer
        pieces = tokenizer.pieces(network.config.prompt)
        prompt = torch.tensor([tokenizer.cls_id, *pieces, tokenizer.sep_id])
        self.register_buffer("prompt", prompt, persistent=False)

    def source(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the decoder reads."""
        return decoder_source(self.network, self.network.vision_encoder(batch["pixel_values"]), self.prompt)

    def forward(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """See `Learner`."""
        return {"caption": caption_loss(self.network, self.source(batch), batch["caption_ids"])}

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Cross-entropy, and the share of captions that are a reference word for word."""
        losses, exact = [], []
        for batch in batches:
            source = self.source(batch)
            losses.append(caption_loss(self.network, source, batch["caption_ids"])[None])
            exact.append(exactly(self.network, source, batch["caption_ids"], self.tokenizer))
        all_losses, all_exact = rows_of_all(losses), rows_of_all(exact)
        if all_losses is None:
            return {}
        return {"caption cross-entropy": all_losses.mean().item(), "captions exact": all_exact.mean().item()}


class AnswerLearner(Learner):
    """Answers to questions; with `alpha`, a momentum copy of the network adds soft labels, as published."""

    def __init__(self, network: MPlug, tokenizer: Tokenizer, *, alpha: float = 0.4, ramp: float = RAMP) -> None:
        super().__init__()
        freeze_all_but(network, ("vision_encoder", "text_encoder", "fusion_encoder", "text_decoder"))
        self.network, self.tokenizer, self.alpha, self.ramp = network, tokenizer, alpha, ramp
        self.teacher = momentum_copy(network) if alpha else None

    def train(self, mode: bool = True) -> AnswerLearner:
        """The momentum copy never drops anything out."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """See `Learner`."""
        questions, answers = batch["question_ids"], batch["answer_ids"]
        images, asked = batch["image_index"], batch["question_index"]
        soft = None
        if self.teacher is not None:
            soft = soft_answers(self.teacher.module, batch["pixel_values"], questions, None, answers, images, asked)
        loss = answer_loss(
            self.network,
            self.network.vision_encoder(batch["pixel_values"]),
            questions,
            None,
            answers,
            batch["weights"],
            images,
            question_index=asked,
            soft_targets=soft,
            alpha=ramped(self.alpha, done, self.ramp),
        )
        return {"answer": loss}

    def after_step(self) -> None:
        """See `Learner`."""
        if self.teacher is not None:
            self.teacher.update_parameters(self.network)

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The share of questions whose greedy answer is one of theirs, each question counting once."""
        right = []
        for batch in batches:
            states = self.network.vision_encoder(batch["pixel_values"])
            fused = fuse(self.network, states, batch["question_ids"], image_index=batch["image_index"])
            asked = batch["question_index"]
            source = self.network.decoder_input(*fused)
            hit = exactly(self.network, source, batch["answer_ids"], self.tokenizer, rows=asked)
            counts = torch.zeros(len(batch["question_ids"]), device=hit.device).index_add_(0, asked, hit)
            right.append(counts.clamp(max=1))
        answered = rows_of_all(right)
        return {} if answered is None else {"answers right": answered.mean().item()}


class GroundingLearner(Learner):
    """Boxes of expressions."""

    def __init__(self, network: MPlug, tokenizer: Tokenizer) -> None:
        super().__init__()
        freeze_all_but(network, ("vision_encoder", "text_encoder", "fusion_encoder", "text_decoder"))
        self.network = network
        self.box_ids = BoxIds.of(tokenizer, network.config.vision.image_size)

    def forward(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """See `Learner`."""
        states = self.network.vision_encoder(batch["pixel_values"])
        loss = grounding_loss(
            self.network, states, batch["expression_ids"], None, batch["box_ids"], self.box_ids, batch["image_index"]
        )
        return {"box": loss}

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean intersection over union, and the share of boxes where it is at least a half."""
        overlaps = []
        for batch in batches:
            states = self.network.vision_encoder(batch["pixel_values"])
            tokens = greedy_boxes(
                self.network, states, batch["expression_ids"], None, self.box_ids, batch["image_index"]
            )
            found = iou(self.box_ids.boxes(tokens).cpu().numpy(), batch["boxes"].cpu().numpy())
            overlaps.append(torch.from_numpy(found))
        everyone = rows_of_all(overlaps)
        if everyone is None:
            return {}
        return {"IoU": everyone.mean().item(), "IoU >= 0.5": (everyone >= ENOUGH).double().mean().item()}


class StatementLearner(Learner):
    """Statements about two images."""

    def __init__(self, network: MPlug, tokenizer: Tokenizer) -> None:
        super().__init__()
        freeze_all_but(network, ("vision_encoder", "text_encoder", "fusion_encoder", "nlvr_head"))
        self.network = network

    def _inputs(self, batch: Batch) -> tuple:
        states = self.network.vision_encoder(batch["pixel_values"])
        return self.network, states, batch["statement_ids"], None, batch["left_index"], batch["right_index"]

    def forward(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """See `Learner`."""
        return {"statement": nlvr_loss(*self._inputs(batch), batch["labels"])}

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The share judged right."""
        return judged((nlvr_logits(*self._inputs(batch)), batch["labels"]) for batch in batches)


class HypothesisLearner(Learner):
    """Hypotheses about one image."""

    def __init__(self, network: MPlug, tokenizer: Tokenizer) -> None:
        super().__init__()
        freeze_all_but(network, ("vision_encoder", "text_encoder", "fusion_encoder", "entail_head"))
        self.network = network

    def forward(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """See `Learner`."""
        states = self.network.vision_encoder(batch["pixel_values"])
        loss = entail_loss(self.network, states, batch["hypothesis_ids"], None, batch["labels"], batch["image_index"])
        return {"hypothesis": loss}

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The share judged right."""
        return judged(
            (
                entail_logits(
                    self.network,
                    self.network.vision_encoder(batch["pixel_values"]),
                    batch["hypothesis_ids"],
                    None,
                    batch["image_index"],
                ),
                batch["labels"],
            )
            for batch in batches
        )


def momentum_copy(network: MPlug, momentum: float = MOMENTUM) -> AveragedModel:
    """Return a copy of the network that follows it slowly: `update_parameters` after every step of the optimiser."""
    copy = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(momentum)).requires_grad_(False)
    copy.n_averaged += 1  # from 0 the first update would take the network's weights as they are
    return copy


def exactly(
    network: MPlug, source: tuple[Tensor, Tensor], wanted: Tensor, tokenizer: Tokenizer, rows: Tensor | None = None
) -> Tensor:
    """1.0 where the greedy text equals `wanted` `[A, L]`, token for token, else 0.0; `[A]`.

    `rows` `[A]`: which row of `source` each wanted text belongs to.
    """
    length = wanted.shape[1]
    found = generate(network, source, start_id=tokenizer.cls_id, end_id=tokenizer.sep_id, length=length)
    found = torch.nn.functional.pad(found, (0, length - found.shape[1]))
    return (found if rows is None else found[rows]).eq(wanted).all(1).float()


def judged(results: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the accuracy of logits `[T, classes]` against labels `[T]`, over the results of all processes."""
    right = rows_of_all([logits.argmax(-1) == labels for logits, labels in results])
    return {} if right is None else {"accuracy": right.float().mean().item()}


LEARNERS: dict[str, Callable[..., Learner]] = {
    "pretrain": PretrainLearner,
    "retrieval": RetrievalLearner,
    "caption": CaptionLearner,
    "vqa": AnswerLearner,
    "grounding": GroundingLearner,
    "nlvr": StatementLearner,
    "entail": HypothesisLearner,
}
