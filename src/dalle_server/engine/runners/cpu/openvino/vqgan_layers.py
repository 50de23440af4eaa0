"""The VQGAN's layers as graph nodes, each as it is defined. See vqgan.py for their order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import opset15 as ops

from dalle_server.engine.runners.cpu.openvino.ops import Node
from dalle_server.engine.runners.cpu.openvino.weights import constant, shared_constant
from dalle_server.models.config import ModelConfig

EPS = 1e-6  # vqgan-jax's GroupNorm


class Layers:
    """In the precision that the graph is compiled with. A subclass computes some layers in another way.

    Constants point into `tensors` where these are float32 and writable (a private mapping): they must outlive what is
    compiled from the graph, which arranges a copy of its own.
    """

    def __init__(self, tensors: Mapping[str, Any], config: ModelConfig):
        self._tensors = tensors
        self.height, self.width = config.picture.grid_height, config.picture.grid_width
        self.height_px, self.width_px = config.picture.height_px, config.picture.width_px
        self.num_groups = config.vqgan.num_groups
        self.num_levels = len(config.vqgan.ch_mult)
        self.num_res_blocks = config.vqgan.num_res_blocks

    def has(self, prefix: str) -> bool:
        return f"{prefix}.weight" in self._tensors

    def array(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self._tensors[name], np.float32)

    def probes(self) -> list[Node]:
        """Further outputs of the graph, made on the way."""
        return []

    def residual(self, x: Node, prefix: str) -> Node:
        h = self.conv(ops.swish(self.norm(x, f"{prefix}.norm1")), f"{prefix}.conv1")
        h = self.conv(ops.swish(self.norm(h, f"{prefix}.norm2")), f"{prefix}.conv2")
        if self.has(f"{prefix}.nin_shortcut"):
            x = self.conv(x, f"{prefix}.nin_shortcut")
        return ops.add(x, h)

    def attention(self, x: Node, prefix: str) -> Node:
        """One head over all places."""
        shape = x.get_output_shape(0)
        flat = np.array([1, shape[1], shape[2] * shape[3]])
        h = self.norm(x, f"{prefix}.norm")
        query, key, value = (ops.reshape(self.conv(h, f"{prefix}.{part}"), flat, special_zero=False) for part in "qkv")
        query = ops.multiply(query, ops.constant(np.float32(1 / math.sqrt(shape[1]))))
        scores = ops.matmul(query, key, transpose_a=True, transpose_b=False)  # (1, queries, keys)
        mixed = ops.matmul(value, ops.softmax(scores, -1), transpose_a=False, transpose_b=True)
        mixed = ops.reshape(mixed, np.array(shape), special_zero=False)
        return ops.add(x, self.conv(mixed, f"{prefix}.proj_out"))

    def codes(self, ids: Node) -> Node:
        """(I,) ids → (1, E, h, w)."""
        table = self.array("quantize.embedding.weight")
        codes = ops.gather(ops.constant(table), ids, ops.constant(np.int32(0)))
        grid = ops.reshape(codes, np.array([1, self.height, self.width, table.shape[1]]), special_zero=False)
        return ops.transpose(grid, np.array([0, 3, 1, 2]))

    def pixels(self, x: Node, prefix: str) -> Node:
        """The last convolution: (1, 3, H, W) f32."""
        return self.conv(x, prefix)

    def norm(self, x: Node, prefix: str) -> Node:
        scale, bias = (ops.constant(self.array(f"{prefix}.{part}")) for part in ("weight", "bias"))
        return ops.group_normalization(x, scale, bias, self.num_groups, EPS)

    def conv(self, x: Node, prefix: str) -> Node:
        return self.add_bias(self.convolved(x, prefix), self.array(f"{prefix}.bias"))

    def convolved(self, x: Node, prefix: str) -> Node:
        """3×3 with a border of zeros, or 1×1."""
        border = [self._tensors[f"{prefix}.weight"].shape[2] // 2] * 2
        return ops.convolution(x, self.weight(prefix), [1, 1], border, border, [1, 1])

    def downsample(self, x: Node, prefix: str) -> Node:
        """3×3 at every second place, with a border on the right and at the bottom only."""
        x = ops.convolution(x, self.weight(prefix), [2, 2], [0, 0], [1, 1], [1, 1])
        return self.add_bias(x, self.array(f"{prefix}.bias"))

    def weight(self, prefix: str) -> Node:
        weight = self.array(f"{prefix}.weight")
        can_share = weight.flags.writeable and weight.flags.c_contiguous
        is_mapped = can_share and weight is self._tensors[f"{prefix}.weight"]
        return (shared_constant if is_mapped else constant)(weight)

    def add_bias(self, x: Node, bias: NDArray[np.float32]) -> Node:
        return ops.add(x, ops.constant(bias.reshape(1, -1, 1, 1)))

    def upsample(self, x: Node, prefix: str) -> Node:
        """Every place doubled in both directions, then a convolution."""
        doubled = np.array([2.0, 2.0], np.float32)
        x = ops.interpolate(
            x,
            doubled,
            "nearest",
            "scales",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=np.array([2, 3], np.int32),
        )
        return self.conv(x, prefix)
