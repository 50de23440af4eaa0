"""Weights as OpenVINO constants: exact, 16-bit, or int8.

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
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.openvino_layers import products
from dalle_server.engine.runners.openvino_quantised import Quantised, quantise_product, stacked

Node = Any  # openvino.Node: the bindings come without types


class Weights:
    """The tensors of a model, given to a graph as layers of one dtype: "fp32", "bf16" or "int8".

    `kept` holds int8 products that need not be computed; a graph's constants point into it, so it must live
    as long as what is compiled from the graph.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str, kept: Mapping[str, Quantised] | None = None):
        self._tensors = checkpoint.transformer
        self._products = products(checkpoint.config)
        self._dtype = dtype
        self._kept = kept

    def vector(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self._tensors[name], np.float32)

    def multiply(self, x: Node, name: str) -> Node:
        """x (rows, in) → (rows, out) by a product of openvino_layers.py."""
        product = self._products[name]
        if self._dtype != "int8":
            weight = self._float(stacked(self._tensors, product))
            release_pages(*(self._tensors[part] for part in product.names))
            return ops.matmul(x, weight, transpose_a=False, transpose_b=True)
        if self._kept is None:
            quantised = quantise_product(self._tensors, product)
            values, scales = constant(quantised.values), constant(quantised.scales)
        else:
            quantised = self._kept[name]
            values, scales = shared_constant(quantised.values), shared_constant(quantised.scales)
        num_inputs = self._tensors[product.names[0]].shape[1]
        # Written as the CPU plugin expects compressed weights to be: Convert → Multiply → Reshape.
        unpacked = ops.multiply(ops.convert(values, "f32"), scales)
        shape = np.array([len(quantised.values), quantised.num_inputs], np.int32)
        weight = ops.reshape(unpacked, shape, special_zero=False)
        return ops.matmul(
            _pad_inputs(x, quantised.num_inputs - num_inputs), weight, transpose_a=False, transpose_b=True
        )

    def _float(self, weight: NDArray[Any]) -> Node:
        if self._dtype == "fp32":
            return constant(weight.astype(np.float32, copy=False))
        if weight.dtype == np.float32:
            weight = weight.astype(ml_dtypes.bfloat16)
        return ops.convert(constant(weight), "f32")


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


def shared_constant(array: NDArray[Any]) -> Node:
    """A constant that points into the array, which must outlive it."""
    return ops.constant(ov.Tensor(array, shared_memory=True), shared_memory=True)


def _pad_inputs(x: Node, missing: int) -> Node:
    """`missing` columns of zeros behind x (rows, in)."""
    if not missing:
        return x
    return ops.pad(x, np.array([0, 0], np.int32), np.array([0, missing], np.int32), "constant")
