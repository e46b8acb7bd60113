"""A checkpoint's stages in PyTorch, called as the tasks call the served ones."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from mplug.config import GenerationConfig
from mplug.contract import Value, Values
from mplug.decoding.candidate_scores import CandidateScores
from mplug.decoding.loop import DecodeLoop
from mplug.decoding.request import DecodeRequestParser, to_outputs
from mplug.network import MPlug
from mplug.runtime.torch import eager_decoder, torch_graphs


class EagerStages:
    """`CallStage` over a network in memory; close it when done."""

    def __init__(self, network: MPlug, start_id: int, end_id: int) -> None:
        self.graphs, text = torch_graphs(network, end_id), network.config.text
        self.loop = None
        if "text_decoder_step" in self.graphs:
            self.loop = DecodeLoop(eager_decoder(network, end_id))
            self.parser = DecodeRequestParser(
                text.hidden_size, text.vocab_size, text.max_positions, 1 << 16, start_id, end_id, GenerationConfig()
            )

    def close(self) -> None:
        if self.loop is not None:
            self.loop.stop()

    async def __call__(self, name: str, inputs: Mapping[str, Value], outputs: Sequence[str]) -> Values:
        if name == "text_decoder":
            return self._decode(inputs)
        found = self.graphs[name]({key: np.ascontiguousarray(value) for key, value in inputs.items()})
        return {output: found[output] for output in outputs}

    def _decode(self, inputs: Mapping[str, Value]) -> Values:
        answer, settled = [], threading.Event()

        def settle(outcome) -> None:
            answer.append(outcome)
            settled.set()

        if "CANDIDATE_IDS" in inputs:
            ids = self.parser.candidates(inputs)
            self.loop.submit_job(
                CandidateScores(
                    self.graphs["text_decoder_score"],
                    *self.parser.encoder_inputs(inputs),
                    ids,
                    done=lambda scores: settle({"TOKEN_IDS": ids, "SCORE": scores}),
                    failed=settle,
                    first_token_weight=self.parser.first_token_weight(inputs),
                )
            )
        else:
            request = self.parser.parse(inputs)
            request.done = lambda found: settle(to_outputs(request, found))
            request.failed = settle
            self.loop.submit(request)
        assert settled.wait(120)
        if isinstance(answer[0], BaseException):
            raise answer[0]
        return answer[0]
