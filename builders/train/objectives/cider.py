"""CIDEr optimisation of captions: self-critical training (arXiv 1612.00563), each sample against its peers.

For every picture some captions are sampled. Each is rewarded with its CIDEr; what it has over the mean of the other
samples of its picture scales the gradient of its likelihood (arXiv 2003.09971, which needs no greedy caption).
Words count by how rare they are in the training corpus, as in the published scorers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test
from torch import Tensor

from builders.train.batches import Batch
from builders.train.distributed import rows_of_all
from builders.train.fused_states import token_losses
from builders.train.generation import generate
from builders.train.learners import CaptionLearner
from mplug.inputs.text import clean_caption
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug

SAMPLES = 5  # per picture


class CiderReward:
    """CIDEr of single captions, with the document frequencies of a corpus."""

    def __init__(self, corpus: Iterable[Sequence[str]]) -> None:
        """`corpus`: the captions of every picture of the training set. Raises ValueError for fewer than two."""
        scorer = CiderScorer()
        for captions in corpus:
            scorer.crefs.append(cook_refs([clean_caption(caption) for caption in captions]))
        scorer.compute_doc_freq()
        self.pictures = len(scorer.crefs)
        if self.pictures < 2:
            raise ValueError(f"CIDEr needs a corpus of several pictures, but there are {self.pictures}")
        self.document_frequency = scorer.document_frequency

    def __call__(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Scores of captions, each against its own references; cleaned as in training, split at blanks."""
        scorer = CiderScorer()
        scorer.document_frequency = self.document_frequency
        scorer.ctest = [cook_test(clean_caption(caption)) for caption in captions]
        cooked = [cook_refs([clean_caption(text) for text in texts]) for texts in references]
        # The scorer takes the size of the corpus from the length of this list, and pairs only the first of it.
        scorer.crefs = cooked + [None] * (self.pictures - len(cooked))
        return [float(score) for score in scorer.compute_cider()]


def advantages(rewards: Tensor) -> Tensor:
    """Rewards `[B, K]` of K samples per picture → what each has over the mean of its K - 1 peers."""
    samples = rewards.shape[1]
    peers = (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
    return rewards - peers


def self_critical_loss(
    network: MPlug,
    source: tuple[Tensor, Tensor],
    references: Sequence[Sequence[str]],
    reward: CiderReward,
    tokenizer: Tokenizer,
    *,
    length: int,
    samples: int = SAMPLES,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, float]:
    """The loss, and the mean reward of the samples.

    Args:
        source: what the decoder reads, `[B, N, W]` and `[B, N]`.
        references: the true captions of every picture.
        length: most tokens of a sample, `[CLS]` and `[SEP]` included. samples: per picture, at least 2.
    A sample may hold padding, which to the decoder is a token like any other; its likelihood is left out.
    """
    if samples < 2:
        raise ValueError(f"{samples} samples per picture have no peers to be compared with; at least 2 are needed")
    repeated = source[0].repeat_interleave(samples, 0), source[1].repeat_interleave(samples, 0)
    ids = generate(
        network,
        repeated,
        start_id=tokenizer.cls_id,
        end_id=tokenizer.sep_id,
        length=length,
        sampled=True,
        generator=generator,
    )
    scores = reward(texts_of(network, ids, tokenizer), [texts for texts in references for _ in range(samples)])
    rewards = torch.tensor(scores, device=ids.device).unflatten(0, (-1, samples))
    tokens = (ids[:, 1:] != 0).sum(1).clamp(min=1)
    likelihoods = -token_losses(network, repeated, ids).sum(1) / tokens  # mean log-probability of a token, [B * K]
    return -(advantages(rewards).flatten() * likelihoods).mean(), rewards.mean().item()


def texts_of(network: MPlug, ids: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Generated ids → captions, without a prompt that the captioner writes itself."""
    return [tokenizer.decode(row[1:]).removeprefix(network.config.prompt).strip() for row in ids.tolist()]


class CiderLearner(CaptionLearner):
    """Captions by self-critical training, for a captioner that cross-entropy has trained."""

    def __init__(self, network: MPlug, tokenizer: Tokenizer, *, reward: CiderReward, samples: int = SAMPLES) -> None:
        super().__init__(network, tokenizer)
        self.reward, self.samples = reward, samples

    def forward(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """See `Learner`."""
        loss, _ = self_critical_loss(
            self.network,
            self.source(batch),
            batch["references"],
            self.reward,
            self.tokenizer,
            length=self.network.config.generation.max_length + 1,
            samples=self.samples,
        )
        return {"self-critical": loss}

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """What captioning measures, and the CIDEr of greedy captions by the training corpus' frequencies."""
        batches, scores = list(batches), []
        for batch in batches:
            ids = generate(
                self.network,
                self.source(batch),
                start_id=self.tokenizer.cls_id,
                end_id=self.tokenizer.sep_id,
                length=self.network.config.generation.max_length + 1,
            )
            scores += self.reward(texts_of(self.network, ids, self.tokenizer), batch["references"])
        measured = super().validate(batches)
        everyone = rows_of_all([torch.tensor(scores)] if scores else [])
        return measured if everyone is None else {**measured, "CIDEr": everyone.mean().item()}
