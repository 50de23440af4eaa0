"""The structures that tell operations.h what to do with feature maps."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import Any


def _fields(kind: Any, names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names.split())


class Convolve(Structure):
    _fields_ = (
        *_fields(c_void_p, "units weights start scale bias residual to moments"),
        ("taps", c_int64 * 9),
        *_fields(c_int64, "unit_column unit_row float_column float_row"),
        *_fields(c_int32, "num_taps num_units tiles rows columns is_exact"),
    )


class Moments(Structure):
    _fields_ = (*_fields(c_void_p, "source moments"), *_fields(c_int32, "rows columns channels"))


class Norm(Structure):
    _fields_ = (
        *_fields(c_void_p, "moments weight bias scale shift"),
        *_fields(c_int32, "rows columns channels groups group_size"),
    )


class Framing(Structure):
    _fields_ = (
        *_fields(c_void_p, "source scale shift largest to"),
        *_fields(c_float, "inverse_step zero"),
        *_fields(c_int32, "rows columns channels is_swish is_exact is_framed wraps"),
    )


class Packing(Structure):
    _fields_ = (*_fields(c_void_p, "source to"), *_fields(c_int32, "places channels is_keys"))


class Softmax(Structure):
    _fields_ = (("scores", c_void_p), *_fields(c_int32, "places length width"))


class Operation(Structure):
    KINDS = (Convolve, Moments, Norm, Framing, Packing, Softmax)  # in the order of operations.h
    _fields_ = (*_fields(c_int32, "kind chunks"), ("what", c_void_p))


class ProgramPointers(Structure):
    _fields_ = (*_fields(c_void_p, "operations phases"), ("count", c_int32))


STRUCTURES = (*Operation.KINDS, ProgramPointers)
