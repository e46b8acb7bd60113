"""Conversion of Triton's tensors, requests and responses to and from arrays and errors."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mplug.contract import Value, Values
from mplug.errors import InvalidRequest, ServingError
from mplug.runtime.gpu.array import DeviceArray
from mplug.runtime.gpu.cuda import DeviceLost, raise_if_lost
from mplug.triton.context import ModelContext

LOST_DEVICE_EXIT_CODE = 86  # of a model's process; any would do, the launcher reads what was printed


def to_value(tensor: Any) -> Value:
    """Return a Triton tensor as an array (a copy), or BYTES as a flat list of bytes.

    A tensor on a GPU stays there. Raises InvalidRequest for BF16, which NumPy does not have.
    """
    try:
        if not tensor.is_cpu():
            return DeviceArray.received(tensor.to_dlpack())
        array = tensor.as_numpy()
    except Exception as error:
        raise InvalidRequest(f"{tensor.name()}: cannot be read as an array: {one_line(error)}") from error
    if array.dtype == np.object_:
        return list(array.reshape(-1))
    return array


def to_tensor(name: str, value: Value) -> Any:
    """Return an array, or a list of bytes or str, as a Triton tensor."""
    if isinstance(value, list | tuple):
        array = np.empty(len(value), np.object_)
        for index, item in enumerate(value):
            if not isinstance(item, bytes | str):
                raise TypeError(f"{name}: a list holds bytes, not {type(item).__name__}")
            array[index] = item.encode() if isinstance(item, str) else item
        return pb_utils.Tensor(name, array)
    if isinstance(value, DeviceArray):
        return pb_utils.Tensor.from_dlpack(name, value.__dlpack__())
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: not an array or a list of bytes but {type(value).__name__}")
    return pb_utils.Tensor(name, np.ascontiguousarray(value))


def read_inputs(request: Any, context: ModelContext) -> Values:
    """Return the inputs of a request. Raises InvalidRequest when a required one is missing.

    Triton has checked names, dtypes and shapes against config.pbtxt. But it only counts the inputs, and counts an
    optional one in place of a required one.
    """
    values = {tensor.name(): to_value(tensor) for tensor in request.inputs()}
    for name in context.required_inputs:
        if name not in values:
            raise InvalidRequest(f"{name}: missing; required: {', '.join(context.required_inputs)}")
    return values


def headers_of(request: Any) -> dict[str, Any]:
    """Return the parameters of a request, among which tritonserver puts the headers that it forwards."""
    return json.loads(request.parameters() or "{}")


def to_response(outputs: Mapping[str, Value]) -> Any:
    """Return a response with these outputs."""
    return pb_utils.InferenceResponse([to_tensor(name, value) for name, value in outputs.items()])


def to_error_response(error: BaseException, lead_with_code: bool = False) -> Any:
    """Return a response with this error; a bug is logged with its traceback and reported in one line.

    With `lead_with_code` the message begins with `[CODE]`: Triton gives every error of a model that another model
    calls the code INTERNAL. `call_stage` removes it again.

    A lost device ends the process: it would answer this error for ever. The launcher notices and ends the server.
    """
    try:
        raise_if_lost(error)
    except DeviceLost as lost:
        print(f"error: the device is lost, the process ends: {one_line(lost)}", file=sys.stderr, flush=True)
        os._exit(LOST_DEVICE_EXIT_CODE)
    if isinstance(error, ServingError):
        code, message = error.code, str(error)
    else:
        traceback.print_exception(error, file=sys.stderr)  # Triton's logger would put it all into one line
        code, message = "INTERNAL", f"internal error: {one_line(error)}"
    if lead_with_code:
        message = f"[{code}] {message}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))


def one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
