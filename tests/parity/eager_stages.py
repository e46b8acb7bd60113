"""A checkpoint's stages in PyTorch, called as the tasks call the served ones."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from mplug.config import GenerationConfig
from mplug.contract import Value, Values
from mplug.decoding.loop import DecodeLoop
from mplug.decoding.request import DecodeRequestParser
from mplug.decoding.service import DecoderService
from mplug.network import MPlug
from mplug.runtime.torch import eager_decoder, torch_graphs

MAX_STATES = 1 << 16  # more than any case brings


class EagerStages:
    """`CallStage` over a network in memory; close it when done."""

    def __init__(self, network: MPlug, start_id: int, end_id: int) -> None:
        self.graphs, text = torch_graphs(network, end_id), network.config.text
        self.decoder = None
        if "text_decoder_step" in self.graphs:
            sizes = text.hidden_size, text.vocab_size, text.max_positions, MAX_STATES
            parser = DecodeRequestParser(*sizes, start_id, end_id, GenerationConfig())
            loop = DecodeLoop(eager_decoder(network, end_id))
            self.decoder = DecoderService(parser, loop, self.graphs.get("text_decoder_score"))

    def close(self) -> None:
        if self.decoder is not None:
            self.decoder.close()

    async def __call__(self, name: str, inputs: Mapping[str, Value], outputs: Sequence[str]) -> Values:
        if name != "text_decoder":
            found = self.graphs[name]({key: np.ascontiguousarray(value) for key, value in inputs.items()})
            return {output: found[output] for output in outputs}
        events = asyncio.get_running_loop()
        answer: asyncio.Future[Values] = events.create_future()
        self.decoder.submit(
            inputs,
            lambda outputs: events.call_soon_threadsafe(answer.set_result, outputs),
            lambda error: events.call_soon_threadsafe(answer.set_exception, error),
        )
        return await answer
