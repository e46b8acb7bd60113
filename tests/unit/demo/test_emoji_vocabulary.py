"""The demo vocabulary: BERT's reserved ids, no unknown words in plain English, one order for ever."""

import string

import pytest

from demo.scenes.generator import SceneGenerator
from demo.scenes.grammar import COUNT_WORDS
from demo.texts.vocabulary import FIRST_FREE_ID, MAX_SIZE, build_vocabulary, write_vocabulary
from mplug.inputs.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    write_vocabulary(path)
    return Tokenizer(path)


def test_reserved_ids_are_berts():
    tokens = build_vocabulary()
    assert tokens[0] == "[PAD]"
    assert tokens[1:100] == [f"[unused{i}]" for i in range(99)]
    assert tokens[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokens[104:FIRST_FREE_ID] == [f"[unused{i}]" for i in range(99, 994)]
    assert FIRST_FREE_ID == 999


def test_it_is_small_has_no_doubles_and_never_changes():
    tokens = build_vocabulary()
    assert len(tokens) == len(set(tokens)) < MAX_SIZE
    assert tokens == build_vocabulary()


def test_every_letter_and_digit_can_start_and_continue_a_word():
    tokens = set(build_vocabulary())
    for character in string.ascii_lowercase + string.digits:
        assert {character, f"##{character}"} <= tokens
    assert set(".,?!'-\"") <= tokens


def test_captions_are_whole_words():
    tokens = set(build_vocabulary())
    generator = SceneGenerator(("noto",), size=32, max_groups=4, seed=1)
    for caption in generator.batch(300).captions:
        assert set(caption.replace(",", "").split()) <= tokens
    assert set(COUNT_WORDS) <= tokens
    questions = "how many red apples are there ? which is to the right of both dogs only moving first"
    assert set(questions.split()) <= tokens


def test_plain_english_is_never_unknown(tokenizer):
    text = "The quick brown fox's 37 zebras jumped over Quixotic lazy dogs (again); why not?"
    pieces = tokenizer.pieces(text)
    assert len(pieces) > 20 and tokenizer.unk_id not in pieces
