"""Run the decoder as two callable graphs over caches in the memory of the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mplug.contract import decoder_prefill, decoder_step
from mplug.runtime.host_decoder import HostDecoder
from mplug.runtime.interface import Graph


class GraphDecoder(HostDecoder):
    """Caches in fp32 that are passed to the step graph at every call.

    For graphs that read numpy arrays in place: PyTorch modules, ONNX Runtime sessions.
    """

    def __init__(self, prefill: Graph, step: Graph, sizes: Mapping[str, int]) -> None:
        """Take the graphs `text_decoder_prefill` and `text_decoder_step`; `sizes`: layers, heads, head_width."""
        layers = sizes["layers"]
        super().__init__(
            layers=layers,
            heads=sizes["heads"],
            head_width=sizes["head_width"],
            cache_dtype=np.dtype(np.float32),
        )
        self._prefill_graph, self._step_graph = prefill, step
        self._prefill_spec, self._step_spec = decoder_prefill(layers), decoder_step(layers)
        self._caches: dict[str, np.ndarray] = {}
        self._search_inputs: dict[str, np.ndarray] = {}

    def _bind(self, past: list[np.ndarray], cross: list[np.ndarray]) -> None:
        names = [name for name in self._step_spec.input_names if name.startswith(("PAST_", "CROSS_"))]
        self._caches = dict(zip(names, [*past, *cross], strict=True))

    def _prefill(self, encoder_states: np.ndarray) -> list[np.ndarray]:
        outputs = self._prefill_graph({"ENCODER_STATES": encoder_states})
        return [outputs[name] for name in self._prefill_spec.output_names]

    def _bind_search(self, inputs: dict[str, np.ndarray]) -> None:
        self._search_inputs = inputs

    def _run_step(self, slots: int) -> Mapping[str, np.ndarray]:
        return self._step_graph(self._search_inputs | {name: cache[:slots] for name, cache in self._caches.items()})
