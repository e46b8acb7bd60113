"""Public model `vqa`: an image and a question → answers, generated or ranked from a given list.

    IMAGE/VIDEO → vision_encoder ┐
       QUESTION → text_encoder   ┴→ fusion_encoder → [image; text] → text_decoder → ANSWER

Ranking, as published for a closed list of answers: the CANDIDATES with the likeliest first token are kept (at most
128). For each, the log-probabilities of its tokens are summed, that of the first counting twice, and the sums go
through a softmax. The authors' script appends the YAML's `eos` to each answer, and the tokenizer ends it with another
`[SEP]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mplug.config import GenerationConfig, MPlugConfig
from mplug.contract import MAX_CANDIDATE_TOKENS, MAX_CANDIDATES, CallStage, Value, Values
from mplug.decoding.beam_search import SearchOptions
from mplug.decoding.request import check_positions, parse_search_options
from mplug.errors import InvalidRequest
from mplug.inputs.pixels import Pixels
from mplug.inputs.text import clean_question
from mplug.tasks.checkpoint_files import ServedCheckpoint
from mplug.tasks.inputs import check_tokens, many_texts, one_text, padded_length, visual
from mplug.tasks.stages import (
    SEARCH_OPTIONS,
    decode,
    encode_images,
    encode_texts,
    encoder_inputs,
    fuse_for_decoder,
    search_inputs,
    side_by_side,
)

MAX_WORDS = 256  # elements of OCR, and of OBJECTS, that one request may hold
OCR_WORDS = 30  # words of OCR that are read, counted after cleaning, as the authors' data set cuts them
#: How many times the log-probability of a candidate's first token counts, as published.
FIRST_TOKEN_WEIGHT = 2
#: Lengths of an answer, as published for VQA, where the checkpoint's own are those of another task.
ANSWER_LENGTHS = {"min_length": 1, "max_length": 10}


@dataclass(frozen=True)
class VqaRequest:
    """A checked request."""

    pixels: Pixels
    question: tuple[np.ndarray, np.ndarray]  #: ids and mask `[L]`
    search: SearchOptions
    candidates: list[str]  #: empty for a generated answer
    candidate_ids: np.ndarray | None  #: `[n, L]`
    answers: int  #: how many ranked candidates to return


def generation_of(config: MPlugConfig) -> GenerationConfig:
    """Return the search defaults for answers."""
    if config.tasks[0].endswith("question-answering"):
        return config.generation
    return replace(config.generation, **ANSWER_LENGTHS)


class VqaTask:
    """Task of `mplug.tasks.interface.Task`."""

    def __init__(self, checkpoint: ServedCheckpoint) -> None:
        self.config, self.tokenizer = checkpoint.config, checkpoint.tokenizer
        self.generation = generation_of(self.config)

    def parse(self, inputs: Mapping[str, Value]) -> VqaRequest:
        """Check all inputs before any stage is called. Raises InvalidRequest."""
        candidates = many_texts(inputs, "CANDIDATES", MAX_CANDIDATES) if "CANDIDATES" in inputs else {}
        options = {name: np.asarray(inputs[name]) for name in SEARCH_OPTIONS if name in inputs}
        answers = len(candidates)
        if candidates:
            answers = _answers_wanted(options, len(candidates))
            search = parse_search_options({}, self.generation, self.tokenizer.sep_id)
        else:
            search = parse_search_options(options, self.generation, self.tokenizer.sep_id)
            check_positions(options, search, 1, self.config.text.max_positions)
        return VqaRequest(
            pixels=visual(inputs, self.config),
            question=self._question(inputs),
            search=search,
            candidates=list(candidates.values()),
            candidate_ids=self._candidate_ids(candidates) if candidates else None,
            answers=answers,
        )

    def _question(self, inputs: Mapping[str, Value]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and mask `[L]` of the question, followed by OCR words and objects, each after a `[SEP]`.

        As in the authors' vqa_dataset.py: OCR words are cleaned and cut, the rest is left as it is.
        Raises InvalidRequest for more tokens than the checkpoint reads.
        """
        most = self.config.max_text_length
        question = one_text(inputs, "QUESTION")
        check_tokens("QUESTION", len(self.tokenizer.pieces(question)), most - 2)
        appended = {
            name: " ".join(many_texts(inputs, name, MAX_WORDS).values())
            for name in ("OCR", "OBJECTS")
            if name in inputs and len(inputs[name])
        }
        if "OCR" in appended:
            appended["OCR"] = clean_question(appended["OCR"], OCR_WORDS)
        count = 2 + len(self.tokenizer.pieces(question))
        count += sum(1 + len(self.tokenizer.pieces(text)) for text in appended.values())
        if count > most:
            names = " and ".join(appended)
            raise InvalidRequest(
                f"{names}: {count} tokens with the question exceed the {most} that the checkpoint reads; "
                "send fewer words"
            )
        length = padded_length(count, most)
        return self.tokenizer.encode(question, length, appended.values(), final_sep=self.config.final_sep)

    def _candidate_ids(self, candidates: Mapping[str, str]) -> np.ndarray:
        """Return ids `[n, L]`, from `[CLS]` to the last `[SEP]`, padded with 0.

        Raises InvalidRequest for an answer that occurs twice, or that has no tokens or too many.
        """
        tokenizer = self.tokenizer
        ends = [*tokenizer.pieces(self.config.eos), *([tokenizer.sep_id] if self.config.final_sep else [])]
        longest = min(self.config.text.max_positions, MAX_CANDIDATE_TOKENS)
        most = min(self.config.max_text_length - 2, longest - 1 - len(ends))
        pieces = []
        names: dict[str, str] = {}
        for name, candidate in candidates.items():
            if names.setdefault(candidate, name) != name:
                raise InvalidRequest(f"{name}: is the same answer as {names[candidate]}")
            pieces.append(tokenizer.pieces(candidate))
            if not 1 <= len(pieces[-1]) <= most:
                raise InvalidRequest(f"{name}: has {len(pieces[-1])} tokens, but must have 1 to {most}")
        ids = np.zeros((len(pieces), 1 + max(map(len, pieces)) + len(ends)), np.int32)
        for row, piece in zip(ids, pieces, strict=True):
            row[: 1 + len(piece) + len(ends)] = [tokenizer.cls_id, *piece, *ends]
        return ids

    async def run(self, request: VqaRequest, call_stage: CallStage) -> Values:
        """Run the stages; return ANSWER, SCORE and TOKEN_IDS, best first."""
        ids, mask = request.question
        states, _ = await encode_images(call_stage, self.config, request.pixels)
        text = await encode_texts(call_stage, self.config, ids[None], mask[None])
        read = encoder_inputs(*await fuse_for_decoder(call_stage, side_by_side(states), text))
        if request.candidate_ids is not None:
            return await self._rank(request, read, call_stage)
        found = await decode(call_stage, {**read, **search_inputs(request.search)})
        answers = [self.tokenizer.decode(row.tolist()).encode() for row in found["TOKEN_IDS"]]
        return {"ANSWER": answers, "SCORE": found["SCORE"], "TOKEN_IDS": found["TOKEN_IDS"]}

    async def _rank(self, request: VqaRequest, read: dict[str, Value], call_stage: CallStage) -> Values:
        weight = np.array([FIRST_TOKEN_WEIGHT], np.int32)
        found = await decode(call_stage, {**read, "CANDIDATE_IDS": request.candidate_ids, "FIRST_TOKEN_WEIGHT": weight})
        likelihood = found["SCORE"].astype(np.float64)  # −inf: not kept after the first token
        probabilities = np.exp(likelihood - likelihood.max())
        probabilities /= probabilities.sum()
        kept = int(np.isfinite(likelihood).sum())
        best = np.argsort(-likelihood, kind="stable")[: min(kept, request.answers)]
        return {
            "ANSWER": [request.candidates[index].encode() for index in best],
            "SCORE": probabilities[best].astype(np.float32),
            "TOKEN_IDS": found["TOKEN_IDS"][best],
        }


def _answers_wanted(options: Mapping[str, np.ndarray], candidates: int) -> int:
    """Return NUM_RETURN, by default the number of candidates. Raises InvalidRequest for search options."""
    for name in options:
        if name != "NUM_RETURN":
            raise InvalidRequest(
                f"{name}: has no meaning with CANDIDATES, which are ranked, not searched; leave it out"
            )
    if "NUM_RETURN" not in options:
        return candidates
    array = options["NUM_RETURN"].reshape(-1)
    if array.size != 1 or not 1 <= int(array[0]) <= candidates:
        shown = array.tolist()[:8]
        raise InvalidRequest(
            f"NUM_RETURN: {shown} is not one number between 1 and {candidates}, the number of CANDIDATES"
        )
    return int(array[0])
