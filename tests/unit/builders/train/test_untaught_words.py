"""Words that no text taught are told apart again; those that were taught, and fresh networks, stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.nn.functional import cosine_similarity
from training_fixtures import small_config, write_vocabulary

from builders.train.checkpoint_folder import start_network
from builders.train.untaught_words import take_apart
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug

DEMO = Path(__file__).parents[4] / "checkpoints/demo"


def rows_of(network: MPlug):
    return network.text_encoder.embeddings.word.weight.detach().clone()


def test_untaught_words_differ_again_and_taught_ones_stay():
    network, vocabulary = start_network(DEMO, ("visual-question-answering",))
    tokenizer = Tokenizer(vocabulary)
    before = rows_of(network)
    words = take_apart(network, tokenizer)
    after = rows_of(network)

    def likeness(rows, one, other):
        return cosine_similarity(rows[tokenizer.token_id(one)], rows[tokenizer.token_id(other)], dim=0).item()

    for pair in (("gray", "seventeen"), ("##e", "##l"), ("gray", "[unused7]")):  # in no scene's text
        assert likeness(before, *pair) > 0.7 and abs(likeness(after, *pair)) < 0.3, pair
    taught = [tokenizer.token_id(word) for word in ("wolf", "red", "apples", "above", "[CLS]", "[SEP]")]
    assert not set(taught) & set(words)
    changed = (after != before).any(1).nonzero().flatten().tolist()
    assert changed == words


def test_a_fresh_network_has_nothing_in_common(tmp_path):
    tokenizer = Tokenizer(write_vocabulary(tmp_path))
    network = MPlug(small_config(tokenizer.vocab_size))
    network.initialise(0)
    before = rows_of(network)
    assert take_apart(network, tokenizer) == []
    assert (rows_of(network) == before).all()


def test_what_has_no_words_to_take_apart_is_told(tmp_path):
    tokenizer = Tokenizer(write_vocabulary(tmp_path))
    config = small_config(tokenizer.vocab_size)
    with pytest.raises(ValueError, match="this network has none"):
        take_apart(MPlug(config, ("vision_encoder", "text_decoder")), tokenizer)
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "unused" not in line) + "\n")
    tokenizer = Tokenizer(path)
    with pytest.raises(ValueError, match=r"no \[unusedN\]"):
        take_apart(MPlug(small_config(tokenizer.vocab_size)), tokenizer)
