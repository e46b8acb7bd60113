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

MAX_ATTEMPTS = 8  # cache keys that are tried while the cached answers are incomplete


async def call_stage(
    name: str,
    inputs: Mapping[str, Value],
    outputs: Sequence[str],
    *,
    gpu: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Values:
    """Run another model of this server on `inputs` and return the named outputs, in the memory of `gpu` if given.

    `headers` are those of a trace; the called model finds them among the request's parameters, as it finds a client's.
    Raises the stage's error with its code; the message starts with the stage's name.

    Triton's response cache stores errors too, and returns them as successes without outputs. And it identifies a
    request by its inputs alone: what it stored for a client that asked for fewer outputs is returned to one that asks
    for more. So an incomplete answer is requested again under the next key, which makes the stage run. The last key
    is random: no client can have stored an incomplete answer under it.
    """
    tensors = [to_tensor(key, value) for key, value in inputs.items()]
    rows = len(next(iter(inputs.values()), []))
    carried = {"parameters": dict(headers)} if headers else {}
    for attempt in range(MAX_ATTEMPTS):
        key = attempt if attempt < MAX_ATTEMPTS - 1 else secrets.randbelow(1 << 31)
        retry = [to_tensor(RETRY_INPUT, np.full((rows, 1), key, np.int32))] if attempt else []
        request = pb_utils.InferenceRequest(
            model_name=name,
            requested_output_names=list(outputs),
            inputs=[*tensors, *retry],
            **carried,
            preferred_memory=pb_utils.PreferredMemory(
                pb_utils.TRITONSERVER_MEMORY_CPU if gpu is None else pb_utils.TRITONSERVER_MEMORY_GPU, gpu or 0
            ),
        )
        response = await request.async_exec()
        if response.has_error():
            message = response.error().message()
            if attempt and RETRY_INPUT in message:
                break  # a model without RETRY_INPUT is not cached, so another key would not help
            raise _stage_error(name, message)
        found = {tensor.name(): to_value(tensor) for tensor in response.output_tensors()}
        if all(output in found for output in outputs):
            return found
    raise StageError(f"{name}: answered without {', '.join(outputs)}")


def _stage_error(name: str, message: str) -> ServingError:
    prefix = re.match(r"\[([A-Z_]+)\] ", message)
    code = prefix.group(1) if prefix and prefix.group(1) in CODES else "INTERNAL"
    message = message.removeprefix(f"[{code}] ").split("\n\nAt:")[0].strip()  # a plain model's traceback
    return error_of_code(code, f"{name}: {message}")
