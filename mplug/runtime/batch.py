"""Several requests as one batch, and the batch as several answers; imports no Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mplug.contract import Stage

Arrays = Mapping[str, np.ndarray]


def groups(requests: Mapping[int, Arrays]) -> list[list[int]]:
    """Indices of the requests that can be one batch: the same inputs, and all axes but the first agree.

    `requests`: by index, each with its inputs; the first axis of an input is that request's batch.
    """
    by_signature: dict[tuple[object, ...], list[int]] = {}
    for index, inputs in requests.items():
        signature = tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items()))
        by_signature.setdefault(signature, []).append(index)
    return list(by_signature.values())


def run_as_one(stage: Stage, requests: Sequence[Arrays]) -> list[dict[str, np.ndarray]]:
    """One run of `stage` over requests of one group; the outputs of each, in order.

    Raises ValueError when the stage's outputs have not one row per row of its inputs.
    """
    sizes = [next(iter(inputs.values())).shape[0] for inputs in requests]
    if len(requests) == 1:
        batch = dict(requests[0])  # no copy
    else:
        batch = {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}
    outputs = stage(batch)
    for name, array in outputs.items():
        if array.shape[:1] != (sum(sizes),):
            raise ValueError(f"output {name} of shape {array.shape} for a batch of {sum(sizes)}")
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in outputs.items()}
        for end, size in zip(ends, sizes, strict=True)
    ]
