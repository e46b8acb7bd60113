"""Training objectives against the authors' code, on batches that `make_training_cases.py` made: losses and gradients.

Plain gradients are compared, never weights after AdamW, which turns the rounding of a small gradient into a whole step.
"""

from __future__ import annotations

import json

import pytest
import torch
from golden import DATA
from make_training_cases import direction, full_pixels, likeliest

from builders.train.fused_states import token_mask
from builders.train.objectives.answering import answer_loss
from builders.train.objectives.captioning import caption_loss
from builders.train.objectives.contrastive import NOBODY, ImageTextContrast
from builders.train.objectives.grounding import BoxIds, grounding_loss
from builders.train.objectives.matching import matching_loss
from mplug.checkpoint import load_checkpoint, rename_published
from mplug.inputs.tokenizer import Tokenizer

CASES = sorted((DATA / "training").glob("*.json"))
#: fp32 sums of some 1e5 products in another order; of a gradient, relative to its norm.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3


class Case:
    """One stored batch, and the network that it was made with."""

    def __init__(self, path) -> None:
        document = json.loads(path.read_text())
        self.batch, self.losses, self.gradients = (document[name] for name in ("batch", "losses", "gradients"))
        self.folder = DATA / document["checkpoint"]
        self.network, _ = load_checkpoint(self.folder)
        self.pixels = full_pixels(self.batch["pixels"], self.network.config.vision.image_size)
        self.ids = torch.tensor(self.batch["texts"])
        self.states = self.network.vision_encoder(self.pixels)

    def caption(self) -> dict[str, torch.Tensor]:
        source = self.states, torch.ones(self.states.shape[:2])
        return {"caption": caption_loss(self.network, source, self.ids)}

    def vqa(self) -> dict[str, torch.Tensor]:
        counts = torch.tensor(self.batch["answers of each"])
        asked = torch.arange(len(counts)).repeat_interleave(counts)
        answers, weights = torch.tensor(self.batch["answers"]), torch.tensor(self.batch["weights"])
        return {
            "answer": answer_loss(
                self.network, self.states, self.ids, None, answers, weights, question_index=asked, soft_targets=None
            )
        }

    def retrieval(self) -> dict[str, torch.Tensor]:
        queued, temperature = len(self.batch["image queue"]), self.batch["temperature"]
        contrast = ImageTextContrast(self.network, queue_size=queued, temperature=temperature).eval()
        for name in ("image", "text"):
            queue = torch.nn.functional.normalize(torch.tensor(self.batch[f"{name} queue"]), dim=1)
            getattr(contrast, f"{name}_queue").copy_(queue)
        contrast.enqueued.fill_(contrast.queue_size)
        contrast.id_queue.fill_(NOBODY)
        mask, ids = token_mask(self.ids), torch.tensor(self.batch["ids"])
        texts = self.network.text_encoder(self.ids, mask)
        found = contrast(
            self.network, self.states, texts, self.pixels, self.ids, mask, ids=ids, alpha=self.batch["alpha"]
        )
        pairs = found.image_to_text, found.text_to_image
        matching = matching_loss(self.network, self.states, texts, mask, *pairs, ids=ids)
        return {"contrast": found.loss, "matching": matching}

    def grounding(self) -> dict[str, torch.Tensor]:
        tokenizer = Tokenizer(self.folder / "vocab.txt", self.network.config.text.vocab_size)
        boxes = BoxIds.of(tokenizer, self.network.config.vision.image_size)
        places = torch.tensor(self.batch["boxes"]) + boxes.first_bin
        tokens = torch.cat([torch.full_like(places[:, :1], boxes.start), places], dim=1)
        return {"box": grounding_loss(self.network, self.states, self.ids, None, tokens, boxes)}


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_losses_and_gradients_are_the_authors(path, monkeypatch):
    monkeypatch.setattr(torch, "multinomial", likeliest)
    case = Case(path)
    losses = getattr(case, path.stem)()
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(case.losses, rel=LOSS_TOLERANCE)
    sum(losses.values()).backward()
    published = {name: torch.tensor(values, dtype=torch.float64) for name, values in case.gradients.items()}
    renamed = rename_published(published, case.network.config)
    own = {name: parameter.grad for name, parameter in case.network.named_parameters() if parameter.grad is not None}
    largest = max(values[0].item() for values in renamed.values())
    compared = 0
    for name, (norm, product, index) in renamed.items():
        gradient = own[name].flatten()
        # A bias of keys, say, has no gradient but rounding: what is far below the largest proves nothing.
        if norm > 1e-5 * largest:
            compared += 1
            assert gradient.norm().item() == pytest.approx(norm.item(), rel=GRADIENT_TOLERANCE), name
            along = (gradient @ direction(int(index), len(gradient))).item()
            assert along == pytest.approx(product.item(), abs=GRADIENT_TOLERANCE * norm.item() * 5), name
    assert compared > 0.8 * len(renamed) > 60
    assert not [name for name in own if name not in renamed and own[name].norm() > 1e-5 * largest]


def test_every_task_has_a_case():
    assert {path.stem for path in CASES} >= {"caption", "vqa", "retrieval", "grounding"}
