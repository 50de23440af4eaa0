"""The VQGAN decoder as a graph: a grid of codes to one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops

from dalle_server.engine.runners.cpu.openvino.ops import Node, parameter, result
from dalle_server.engine.runners.cpu.openvino.weights import constant, shared_constant
from dalle_server.models.config import ModelConfig

EPS = 1e-6  # vqgan-jax's GroupNorm


def build_vqgan(tensors: Mapping[str, Any], config: ModelConfig) -> ov.Model:
    """Input: ids (I,) int32. Output: pixels (H, W, 3) float32, nominally 0…1, not clipped.

    One picture at a time: the shapes are then static, which measured faster, and no picture can touch another.
    Constants point into `tensors` where these are float32 and writable (a private mapping): they must outlive what is
    compiled from the graph, which arranges a copy of its own.
    """
    return DecoderGraph(tensors, config).build()


class DecoderGraph:
    """Each layer as it is defined. A subclass may compute some in another way."""

    def __init__(self, tensors: Mapping[str, Any], config: ModelConfig):
        self.tensors = tensors
        self.config = config.vqgan
        self.side = config.grid_side

    def build(self) -> ov.Model:
        ids = parameter("ids", [self.side**2], ov.Type.i32)
        x = self.conv(self.codes(ids), "post_quant_conv")
        x = self.conv(x, "decoder.conv_in")
        x = self._residual(x, "decoder.mid.block_1")
        x = self._attention(x, "decoder.mid.attn_1")
        x = self._residual(x, "decoder.mid.block_2")
        for level in reversed(range(len(self.config.ch_mult))):
            x = self._level(x, level)
        x = self.pixels(ops.swish(self.norm(x, "decoder.norm_out")), "decoder.conv_out")
        picture = ops.squeeze(ops.transpose(x, np.array([0, 2, 3, 1])), np.array([0]))
        return ov.Model([result("pixels", picture)], [ids], "vqgan_decoder")

    def _level(self, x: Node, level: int) -> Node:
        prefix = f"decoder.up.{level}"
        for block in range(self.config.num_res_blocks + 1):
            x = self._residual(x, f"{prefix}.block.{block}")
            # Present in the checkpoint where the level's resolution is one of attn_resolutions.
            if f"{prefix}.attn.{block}.norm.weight" in self.tensors:
                x = self._attention(x, f"{prefix}.attn.{block}")
        return x if level == 0 else self.upsample(x, f"{prefix}.upsample.conv")

    def _residual(self, x: Node, prefix: str) -> Node:
        h = self.conv(ops.swish(self.norm(x, f"{prefix}.norm1")), f"{prefix}.conv1")
        h = self.conv(ops.swish(self.norm(h, f"{prefix}.norm2")), f"{prefix}.conv2")
        if f"{prefix}.nin_shortcut.weight" in self.tensors:
            x = self.conv(x, f"{prefix}.nin_shortcut")
        return ops.add(x, h)

    def _attention(self, x: Node, prefix: str) -> Node:
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
        table = ops.constant(self.array("quantize.embedding.weight"))
        codes = ops.gather(table, ids, ops.constant(np.int32(0)))
        grid = ops.reshape(codes, np.array([1, self.side, self.side, self.config.embed_dim]), special_zero=False)
        return ops.transpose(grid, np.array([0, 3, 1, 2]))

    def pixels(self, x: Node, prefix: str) -> Node:
        """The last convolution: (1, 3, H, W) f32."""
        return self.conv(x, prefix)

    def norm(self, x: Node, prefix: str) -> Node:
        scale, bias = (ops.constant(self.array(f"{prefix}.{part}")) for part in ("weight", "bias"))
        return ops.group_normalization(x, scale, bias, self.config.num_groups, EPS)

    def conv(self, x: Node, prefix: str) -> Node:
        return self.add_bias(self.convolved(x, prefix), self.array(f"{prefix}.bias"))

    def convolved(self, x: Node, prefix: str) -> Node:
        """3×3 with a border of zeros, or 1×1."""
        weight = self.array(f"{prefix}.weight")
        border = [weight.shape[2] // 2] * 2
        make = shared_constant if weight.flags.writeable and weight is self.tensors[f"{prefix}.weight"] else constant
        return ops.convolution(x, make(weight), [1, 1], border, border, [1, 1])

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

    def array(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self.tensors[name], np.float32)
