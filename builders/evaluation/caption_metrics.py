"""CIDEr, BLEU, METEOR, ROUGE-L and SPICE of captions, by `pycocoevalcap`, the tools that papers report.

Three parts of those tools are Java programs: the tokeniser, METEOR and SPICE. What cannot be computed here is
reported with its reason in place of a number: without Java, texts are split at blanks, and METEOR and SPICE are left
out; SPICE needs Stanford's models besides, which its package does not bring (`fetch_spice_models`).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycocoevalcap.meteor.meteor import Meteor

NO_JAVA = "not computed: no Java runtime (Debian: default-jre-headless)"
NO_PACKAGE = "not computed: pycocoevalcap is not installed"
NO_MODELS = "not computed: Stanford's models are not here (--fetch-spice-models downloads them, 400 MB)"
#: What the tools need beside the package's own files to compute SPICE, in its folder `spice/lib`.
SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"

#: A metric's value as a share of 1 (CIDEr may exceed it), or the reason why there is none.
Values = dict[str, float | str]


@dataclass(frozen=True)
class CaptionScore:
    """`values` by the metric's name; `tokeniser` that split the texts."""

    values: Values
    tokeniser: str


def score(references: Mapping[str, Sequence[str]], captions: Mapping[str, str]) -> CaptionScore:
    """Score one caption per picture against its references, by the picture's key.

    Raises ValueError when the keys are not the same, or a picture has no reference.
    """
    if not captions:
        raise ValueError("there are no captions to be scored")
    if references.keys() != captions.keys():
        missing, unknown = references.keys() - captions.keys(), captions.keys() - references.keys()
        problems = [f"no caption for {_some(missing)}"] if missing else []
        problems += [f"no references for {_some(unknown)}"] if unknown else []
        raise ValueError("; ".join(problems))
    bare = [key for key, texts in references.items() if not texts]
    if bare:
        raise ValueError(f"no references for {_some(bare)}")
    if find_spec("pycocoevalcap") is None:
        return CaptionScore(dict.fromkeys(("CIDEr", "BLEU-4", "METEOR", "ROUGE-L", "SPICE"), NO_PACKAGE), "none")
    java = shutil.which("java") is not None
    split = _by_penn_treebank if java else _by_blanks
    with contextlib.redirect_stdout(sys.stderr):  # the tools print as they go
        truths, answers = split(references), split({key: [caption] for key, caption in captions.items()})
        values = {**_counted(truths, answers), "METEOR": NO_JAVA, "SPICE": NO_JAVA}
        if java:
            values["METEOR"] = _meteor(truths, answers)
            values["SPICE"] = _spice(truths, answers)
    return CaptionScore(values, "Penn Treebank" if java else "blanks, for want of Java")


def fetch_spice_models() -> None:
    """Download Stanford's models into pycocoevalcap's folder. Raises OSError when they cannot be had."""
    from pycocoevalcap.spice.get_stanford_models import get_stanford_models

    with contextlib.redirect_stdout(sys.stderr):
        get_stanford_models()


def _counted(truths: dict[str, list[str]], answers: dict[str, list[str]]) -> Values:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    cider, _ = Cider().compute_score(truths, answers)
    bleu, _ = Bleu(4).compute_score(truths, answers, verbose=0)
    rouge, _ = Rouge().compute_score(truths, answers)
    orders = {f"BLEU-{order}": float(value) for order, value in enumerate(bleu, 1)}
    return {"CIDEr": float(cider), **orders, "ROUGE-L": float(rouge)}


@cache
def _meteor_program() -> Meteor:
    """METEOR's program; it takes ten seconds to start, so that one serves all splits."""
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _meteor(truths: dict[str, list[str]], answers: dict[str, list[str]]) -> float | str:
    try:
        value, _ = _meteor_program().compute_score(truths, answers)
    except (OSError, ValueError) as error:  # its program ended early, or answered with something else
        return f"not computed: METEOR's program failed ({' '.join(str(error).split())})"
    return float(value)


def _spice(truths: dict[str, list[str]], answers: dict[str, list[str]]) -> float | str:
    import subprocess

    from pycocoevalcap.spice import spice

    if not (Path(spice.__file__).parent / "lib" / SPICE_MODELS).is_file():
        return NO_MODELS
    try:
        value, _ = spice.Spice().compute_score(truths, answers)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return f"not computed: SPICE's program failed ({' '.join(str(error).split())[:120]})"
    return float(value)


def _by_penn_treebank(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # One line per text: whatever breaks lines would move all that follow to other pictures.
    lines = {key: [{"caption": " ".join(text.split()) or "."} for text in each] for key, each in texts.items()}
    return PTBTokenizer().tokenize(lines)


def _by_blanks(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {key: [" ".join(_words(text)) for text in each] for key, each in texts.items()}


def _words(text: str) -> Iterator[str]:
    return (match[0] for match in re.finditer(r"\w+(?:'\w+)?", text.lower()))


def _some(keys: object) -> str:
    listed = sorted(map(str, keys))  # type: ignore[call-overload]
    rest = len(listed) - 5
    return ", ".join(listed[:5]) + (f" and {rest} more" if rest > 0 else "")
