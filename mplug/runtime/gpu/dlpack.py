"""Memory of a GPU that one model leaves there for another, taken over without a copy: DLPack, with ctypes.

Triton's Python backend hands GPU tensors out as DLPack capsules, and so do torch and CuPy. The layout of
`DLManagedTensor` is that of DLPack's public header `dlpack.h`, version 0.x.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

CPU, CUDA = 1, 2
#: Names of a capsule that nobody took yet, and of one that somebody did. CPython keeps the pointers.
FRESH, TAKEN = b"dltensor", b"used_dltensor"
#: DLPack's kind of number and bits → names that numpy uses, and bf16.
TYPES = {(0, 32): "int32", (0, 64): "int64", (2, 16): "float16", (2, 32): "float32", (4, 16): "bfloat16"}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("dimensions", ctypes.c_int32),
        ("type", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


@dataclass(frozen=True)
class Borrowed:
    """Memory that belongs to another, valid inside `borrow`."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int  #: CPU, CUDA or another of DLPack's kinds
    index: int  #: which of that kind

    @property
    def size(self) -> int:
        """Bytes."""
        bits = next(bits for (_, bits), name in TYPES.items() if name == self.dtype)
        return prod(self.shape) * bits // 8


def on_gpu(tensor: Any) -> bool:
    """Return whether `tensor` says through DLPack that it lies in a GPU's memory."""
    where = getattr(tensor, "__dlpack_device__", None)
    return where is not None and int(where()[0]) == CUDA


@contextmanager
def borrow(tensor: Any) -> Iterator[Borrowed]:
    """Borrow the memory of a tensor with `__dlpack__`, or of a capsule.

    It is given back at the end of the block: all work that reads it must be done by then. Raises ValueError
    for memory that is not contiguous, or of a type that no stage has.
    """
    capsule = tensor.__dlpack__() if hasattr(tensor, "__dlpack__") else tensor
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
    managed = ctypes.cast(api.PyCapsule_GetPointer(capsule, FRESH), ctypes.POINTER(_Managed))
    # The new name says that the memory is ours to give back; the capsule then leaves it alone.
    api.PyCapsule_SetName(capsule, TAKEN)
    try:
        yield _read(managed.contents.tensor)
    finally:
        if managed.contents.deleter:
            managed.contents.deleter(managed)


#: Capsules that were given out: address of the managed tensor → all that must live as long as it.
_given: dict[int, tuple[Any, ...]] = {}


@_Deleter
def _release(managed: Any) -> None:
    _given.pop(ctypes.addressof(managed.contents), None)


_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_is_named = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@_Destructor
def _forget(capsule: int) -> None:
    if _is_named(capsule, FRESH):  # nobody took it
        _given.pop(_pointer_in(capsule, FRESH), None)


def capsule(address: int, shape: tuple[int, ...], dtype: str, keep: Any, index: int = 0) -> Any:
    """Return a DLPack capsule over memory of GPU `index`; `keep` lives until its consumer releases it."""
    code, bits = next(kind for kind, name in TYPES.items() if name == dtype)
    lengths = (ctypes.c_int64 * len(shape))(*shape)
    tensor = _Tensor(address, _Device(CUDA, index), len(shape), _DataType(code, bits, 1), lengths, None, 0)
    managed = _Managed(tensor, None, _release)
    _given[ctypes.addressof(managed)] = (managed, lengths, keep)
    return _new_capsule(ctypes.addressof(managed), FRESH, _forget)


def _read(tensor: _Tensor) -> Borrowed:
    shape = tuple(tensor.shape[index] for index in range(tensor.dimensions))
    dtype = TYPES.get((tensor.type.code, tensor.type.bits))
    if dtype is None or tensor.type.lanes != 1:
        raise ValueError(f"DLPack type {tensor.type.code} of {tensor.type.bits} bits is not supported")
    if tensor.strides:
        expected = 1
        for index in reversed(range(len(shape))):
            if shape[index] != 1 and tensor.strides[index] != expected:
                raise ValueError(f"a tensor of shape {shape} is not contiguous")
            expected *= shape[index]
    return Borrowed((tensor.data or 0) + tensor.offset, shape, dtype, tensor.device.type, tensor.device.id)
