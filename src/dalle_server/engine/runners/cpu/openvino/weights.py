"""A model's weights as constants of a graph.

The CPU plugin recognises how an int8 layer is written, keeps the bytes as they are and unpacks them inside the
product, so that a decode step reads one byte a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.packing import Packed, pack, products

Node = Any  # openvino.Node: the bindings come without types


class Weights:
    """The tensors of a model, given to a graph as layers of one dtype: "fp32", "bf16" or "int8".

    `kept` holds products that are packed already; a graph's constants point into it, so it must live as long as
    what is compiled from the graph.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str, kept: Mapping[str, Packed] | None = None):
        self._tensors = checkpoint.transformer
        self._products = products(checkpoint.config)
        self._dtype = dtype
        self._kept = kept

    def vector(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self._tensors[name], np.float32)

    def multiply(self, x: Node, name: str) -> Node:
        """x (rows, in) → (rows, out) by a product of the family's."""
        product = self._products[name]
        packed = pack(self._tensors, product, self._dtype) if self._kept is None else self._kept[name]
        make = constant if self._kept is None else shared_constant
        weight = make(packed["values"])
        if weight.get_element_type() != ov.Type.f32:
            weight = ops.convert(weight, "f32")
        if self._dtype == "int8":
            # Written as the plugin expects compressed weights to be: Convert → Multiply → Reshape.
            rows, groups, group = packed["values"].shape
            shape = np.array([rows, groups * group], np.int32)
            weight = ops.reshape(ops.multiply(weight, make(packed["scales"])), shape, special_zero=False)
            x = _pad_inputs(x, groups * group - self._tensors[product.names[0]].shape[1])
        return ops.matmul(x, weight, transpose_a=False, transpose_b=True)


def constant(array: NDArray[Any]) -> Node:
    """A constant of the array's own type, in memory that OpenVINO owns: it would not keep the array alive."""
    is_bf16 = array.dtype == ml_dtypes.bfloat16
    tensor = ov.Tensor(ov.Type.bf16 if is_bf16 else ov.Type(array.dtype), ov.Shape(array.shape))
    if is_bf16:
        tensor.data.view(np.uint16)[:] = array.view(np.uint16)
    else:
        tensor.data[:] = array
    return ops.constant(tensor, shared_memory=True)


def shared_constant(array: NDArray[Any]) -> Node:
    """A constant that points into the array, which must outlive it."""
    if array.dtype == ml_dtypes.bfloat16:
        # numpy has no bfloat16 of its own: hand over the words that it consists of.
        tensor = ov.Tensor(array.view(np.uint16), ov.Shape(array.shape), ov.Type.bf16)
    else:
        tensor = ov.Tensor(array, shared_memory=True)
    return ops.constant(tensor, shared_memory=True)


def _pad_inputs(x: Node, missing: int) -> Node:
    """`missing` columns of zeros behind x (rows, in)."""
    if not missing:
        return x
    return ops.pad(x, np.array([0, 0], np.int32), np.array([0, missing], np.int32), "constant")
