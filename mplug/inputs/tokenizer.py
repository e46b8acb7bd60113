"""BERT's WordPiece, from a published `vocab.txt`.

The same ids as Hugging Face's `BertTokenizer` for bert-base-uncased (Devlin et al. 2018, arXiv 1810.04805),
which the published weights were used with, but without transformers: `tokenizers` alone is enough to serve.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_MAX_WORD_CHARACTERS = 100  # longer words are [UNK], as in BERT
_CONTINUATION = "##"

# Blanks that BERT's splitting put in front of these are taken out again, in this order, as
# `clean_up_tokenization_spaces` of Hugging Face does.
_CLOSED_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Tokenizer:
    """Text → token ids of a fixed length, and back.

    A special token written out in a text (`[SEP]`) is that token, as in the published tokeniser; `[unused7]`
    is not special there and falls apart into pieces: use `token_id` for those.

    Attributes: `vocab_size`, and the ids `pad_id`, `unk_id`, `cls_id`, `sep_id`, `mask_id`.
    Safe to use from several threads.
    """

    def __init__(self, vocab_path: str | Path, vocab_size: int | None = None) -> None:
        """Reads `vocab_path`, one token a line, the line number from 0 being the id.

        `vocab_size` is that of the model's configuration, checked where given.
        Raises `ValueError` for a vocabulary that is empty, has duplicates, lacks a special token or has
        another size than the model; `FileNotFoundError` where there is none.
        """
        self._tokens = _read_vocabulary(Path(vocab_path), vocab_size)
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = map(self.token_id, SPECIAL_TOKENS)
        self._special_ids = frozenset(map(self.token_id, SPECIAL_TOKENS))

        self._pieces = tokenizers.Tokenizer(
            models.WordPiece(
                self._ids,
                unk_token=UNK,
                continuing_subword_prefix=_CONTINUATION,
                max_input_chars_per_word=_MAX_WORD_CHARACTERS,
            )
        )
        self._pieces.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
        )
        self._pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._pieces.add_special_tokens(list(SPECIAL_TOKENS))

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def token_id(self, token: str) -> int:
        """The id of one token of the vocabulary, `[unused339]` for instance; `KeyError` if it has none."""
        try:
            return self._ids[token]
        except KeyError:
            raise KeyError(f"the vocabulary of {self.vocab_size} tokens has no {token!r}") from None

    def pieces(self, text: str) -> list[int]:
        """The ids of a text alone: no [CLS], no [SEP], any length."""
        return self._pieces.encode(text, add_special_tokens=False).ids

    def encode(
        self, text: str, max_length: int, behind: Iterable[str] = (), *, final_sep: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """`[CLS] text [SEP]`, padded with [PAD].

        `behind`: texts that follow, each with a [SEP] of its own (for VQA the OCR words, then the object
        labels). What exceeds `max_length` is cut off at the end; the last token kept
        is always [SEP], unless `final_sep` leaves it out.
        Returns input ids and attention mask (1 on tokens, 0 on padding), both int32 [max_length].
        """
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}, [CLS] and [SEP] alone take 2")
        ids = self.pieces(text)
        for follower in map(self.pieces, behind):
            ids += [self.sep_id, *follower]
        ends = [self.sep_id] if final_sep else []
        ids = [self.cls_id, *ids[: max_length - 1 - len(ends)], *ends]

        input_ids = np.full(max_length, self.pad_id, dtype=np.int32)
        input_ids[: len(ids)] = ids
        attention_mask = np.zeros(max_length, dtype=np.int32)
        attention_mask[: len(ids)] = 1
        return input_ids, attention_mask

    def decode(self, ids: Iterable[int]) -> str:
        """The text before the first [SEP], without special tokens; pieces of a word are joined.

        Raises `ValueError` for an id outside the vocabulary.
        """
        tokens: list[str] = []
        for index in map(int, ids):
            if index == self.sep_id:
                break
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"token id {index} is outside the vocabulary of {self.vocab_size} tokens")
            if index not in self._special_ids:
                tokens.append(self._tokens[index])
        text = " ".join(tokens).replace(f" {_CONTINUATION}", "").strip()
        for spaced, closed in _CLOSED_UP:
            text = text.replace(spaced, closed)
        return text


def _read_vocabulary(path: Path, vocab_size: int | None) -> list[str]:
    """Checked tokens in the order of their ids."""
    # Not splitlines(): it also splits at characters that are themselves tokens in some vocabularies.
    tokens = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if tokens == [""]:
        raise ValueError(f"{path} is empty: a BERT vocabulary has one token a line")
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token in ids:
            raise ValueError(f"{path} has {token!r} twice, as id {ids[token]} and as id {index}")
        ids[token] = index
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: is it a BERT vocabulary?")
    if vocab_size is not None and len(tokens) != vocab_size:
        raise ValueError(f"{path} has {len(tokens)} tokens, the model's configuration says {vocab_size}")
    return tokens
