"""Calls from one served model to another (business logic scripting, BLS)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence

import numpy as np
import triton_python_backend_utils as pb_utils

from mplug.contract import RETRY_INPUT, Value, Values
from mplug.errors import CODES, ServingError, StageError, error_of_code
from mplug.triton.tensors import to_tensor, to_value

MAX_ATTEMPTS = 8  # places in the response cache at which a stage is asked, where each holds no whole answer


async def call_stage(name: str, inputs: Mapping[str, Value], outputs: Sequence[str], *, on_gpu: bool = False) -> Values:
    """Run another model of this server on `inputs` and return the named outputs, by choice in the memory of the GPU.

    Raises the stage's error with its code, its message led by the stage's name.

    Triton's response cache keeps errors too, and gives them back as successes without outputs; and it goes by a
    request's inputs alone, so that what it kept for a client that asked for fewer outputs comes back to one that asks
    for more. An answer that is not whole is asked for again at the next place in the cache: the stage runs, and this
    place keeps what it gives. The last place is drawn at random, so that no client can have spoilt it.
    """
    tensors = [to_tensor(key, value) for key, value in inputs.items()]
    rows = len(next(iter(inputs.values()), []))
    for attempt in range(MAX_ATTEMPTS):
        place = attempt if attempt < MAX_ATTEMPTS - 1 else secrets.randbelow(1 << 31)
        retry = [to_tensor(RETRY_INPUT, np.full((rows, 1), place, np.int32))] if attempt else []
        request = pb_utils.InferenceRequest(
            model_name=name,
            requested_output_names=list(outputs),
            inputs=[*tensors, *retry],
            preferred_memory=pb_utils.PreferredMemory(
                pb_utils.TRITONSERVER_MEMORY_GPU if on_gpu else pb_utils.TRITONSERVER_MEMORY_CPU, 0
            ),
        )
        response = await request.async_exec()
        if response.has_error():
            message = response.error().message()
            if attempt and RETRY_INPUT in message:
                break  # no stage of ours, or one that does not cache: it has no other place to ask at
            raise _stage_error(name, message)
        found = {tensor.name(): to_value(tensor) for tensor in response.output_tensors()}
        if all(output in found for output in outputs):
            return found
    raise StageError(f"{name}: answered without {', '.join(outputs)}")


def _stage_error(name: str, message: str) -> ServingError:
    led = re.match(r"\[([A-Z_]+)\] ", message)
    code = led.group(1) if led and led.group(1) in CODES else "INTERNAL"
    message = message.removeprefix(f"[{code}] ").split("\n\nAt:")[0].strip()  # a plain model's traceback
    return error_of_code(code, f"{name}: {message}")
