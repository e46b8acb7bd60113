"""The baseline of `throughput`: BLIP behind LitServe with dynamic batching.

    python -m benchmarks.contenders.litserve_blip --port PORT [--preset base|quick]

POST /predict {"image": base64, "tokens": n} → {"ids": […]}. A batch generates as many tokens as its longest
caption asks for, and each caption is cut to its own length: static batching knows no better.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence

import litserve
import numpy as np

from benchmarks.contenders.blip import best_blip
from benchmarks.presets import PRESETS, ModelSizes

MAX_BATCH = 8
#: How long a batch that is not full waits for more requests, seconds.
BATCH_TIMEOUT = 0.05


class BlipApi(litserve.LitAPI):
    """Runs in LitServe's worker process."""

    def __init__(self, sizes: ModelSizes, max_batch: int = MAX_BATCH) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=BATCH_TIMEOUT)
        self._sizes = sizes

    def setup(self, device: str) -> None:
        self._model = best_blip(self._sizes)

    # No annotation: LitServe would hand it to FastAPI as the type of the body.
    def decode_request(self, request) -> tuple[np.ndarray, int]:
        return self._model.pixels(base64.b64decode(request["image"])), int(request["tokens"])

    def batch(self, inputs: Sequence[tuple[np.ndarray, int]]) -> list[tuple[np.ndarray, int]]:
        return list(inputs)

    def predict(self, batch: list[tuple[np.ndarray, int]]) -> list[list[int]]:
        lengths = [tokens for _, tokens in batch]
        ids = self._model.generate([pixels for pixels, _ in batch], max(lengths))
        return [row[: 1 + tokens].tolist() for row, tokens in zip(ids, lengths, strict=True)]

    def unbatch(self, output: list[list[int]]) -> list[list[int]]:
        return output

    def encode_response(self, output: list[int]) -> dict[str, list[int]]:
        return {"ids": output}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--preset", choices=PRESETS, default="base")
    options = parser.parse_args()
    # No limit on how long a request may take: the queue of a slow server is what is measured.
    server = litserve.LitServer(BlipApi(PRESETS[options.preset].sizes), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=options.port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
