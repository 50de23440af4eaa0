"""Weights as OpenVINO constants: exact, 16-bit, or int8 with one scale for each 64 inputs.

An int8 linear layer is written as Constant(i8) → Convert → Multiply(scale) → Reshape → MatMul. The CPU
plugin recognises the pattern, keeps the bytes as they are and unpacks them inside the product, so that a
decode step reads one byte a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops

GROUP_SIZE = 64  # inputs that share a scale; finer costs reading, coarser costs accuracy
_CHUNK_BYTES = 16 << 20  # quantise this much float32 at a time

Node = Any  # openvino.Node: the bindings come without types


@dataclass(frozen=True, slots=True)
class Quantised:
    """w[o, i] ≈ values[o, g, j]·scales[o, g], i = g·group + j. Inputs are padded with zeros to whole groups."""

    values: NDArray[np.int8]  # (out, groups, group)
    scales: NDArray[np.float32]  # (out, groups, 1)

    @property
    def num_inputs(self) -> int:
        """Inputs of the product, padding included."""
        return int(self.values.shape[1] * self.values.shape[2])

    def dequantise(self) -> NDArray[np.float32]:
        """(out, padded in)."""
        return (self.values * self.scales).reshape(len(self.values), -1)


def quantise(weight: NDArray[Any]) -> Quantised:
    """Symmetric round-to-nearest int8 of an (out, in) matrix of any float type, a few rows at a time.

    Raises ValueError for a weight that is not finite.
    """
    rows, inputs = weight.shape
    group = min(GROUP_SIZE, inputs)
    groups = -(-inputs // group)
    values = np.empty((rows, groups, group), np.int8)
    scales = np.empty((rows, groups, 1), np.float32)
    step = max(1, _CHUNK_BYTES // (4 * inputs))
    for start in range(0, rows, step):
        part = np.zeros((min(step, rows - start), groups * group), np.float32)
        part[:, :inputs] = weight[start : start + step]
        part = part.reshape(len(part), groups, group)
        scale = np.maximum(part.max(axis=2, keepdims=True), -part.min(axis=2, keepdims=True))
        scale /= 127
        if not np.isfinite(scale).all():
            raise ValueError("a weight is not finite")
        scales[start : start + step] = scale
        # An all-zero group has the scale 0; dividing by 1 instead keeps its zeros.
        part *= 1 / np.where(scale == 0, 1, scale)
        np.rint(part, out=part)
        values[start : start + step] = part
    return Quantised(values, scales)


def constant(array: NDArray[Any]) -> Node:
    """A constant of the array's own type, in memory that OpenVINO owns: it would not keep the array alive."""
    # numpy has no bfloat16 of its own: hand over the words that it consists of.
    is_bf16 = array.dtype == ml_dtypes.bfloat16
    tensor = ov.Tensor(ov.Type.bf16 if is_bf16 else ov.Type(array.dtype), ov.Shape(array.shape))
    if is_bf16:
        tensor.data.view(np.uint16)[:] = array.view(np.uint16)
    else:
        tensor.data[:] = array
    return ops.constant(tensor, shared_memory=True)


class Weights:
    """The tensors of one model, given to a graph as layers of one dtype.

    `tensors` maps native names to (out, in) matrices and vectors; `dtype` is "fp32", "bf16" or "int8".
    """

    def __init__(self, tensors: Mapping[str, Any], dtype: str):
        self.tensors = tensors
        self.dtype = dtype

    def vector(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self.tensors[name], np.float32)

    def matrix(self, names: Sequence[str], scale: float = 1.0, rows: int | None = None) -> NDArray[Any]:
        """Matrices stacked along their outputs; `scale` multiplies the first one, `rows` cuts the result."""
        parts = [np.asarray(self.tensors[name]) for name in names]
        if scale != 1.0:
            parts[0] = parts[0].astype(np.float32) * np.float32(scale)
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole[:rows]

    def linear(self, x: Node, *names: str, scale: float = 1.0, rows: int | None = None) -> Node:
        """x (rows, in) → x·Wᵀ (rows, out), W the named matrices stacked; `scale` and `rows` as in `matrix`."""
        weight = self.matrix(names, scale, rows)
        if self.dtype != "int8":
            node = constant(weight if self.dtype == "bf16" else weight.astype(np.float32, copy=False))
            if node.get_element_type() != ov.Type.f32:
                node = ops.convert(node, "f32")
            return ops.matmul(x, node, transpose_a=False, transpose_b=True)
        quantised = quantise(weight)
        x = pad_inputs(x, quantised.num_inputs - weight.shape[1])
        return ops.matmul(x, self._unpack(quantised), transpose_a=False, transpose_b=True)

    def _unpack(self, weight: Quantised) -> Node:
        """(out, in) float32, written as the CPU plugin expects compressed weights to be."""
        values = ops.convert(constant(weight.values), "f32")
        scaled = ops.multiply(values, constant(weight.scales))
        return ops.reshape(scaled, np.array([len(weight.values), weight.num_inputs], np.int32), special_zero=False)


def pad_inputs(x: Node, missing: int) -> Node:
    """`missing` columns of zeros behind x (rows, in)."""
    if not missing:
        return x
    return ops.pad(x, np.array([0, 0], np.int32), np.array([0, missing], np.int32), "constant")
