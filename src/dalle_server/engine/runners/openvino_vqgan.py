"""The VQGAN decoder as a graph: a grid of codes to one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from dalle_server.engine.runners.openvino_ops import Node, parameter, result
from dalle_server.engine.runners.openvino_weights import constant, shared_constant
from dalle_server.models.config import ModelConfig, VQGANConfig

_EPS = 1e-6  # vqgan-jax's GroupNorm


def build_vqgan(tensors: Mapping[str, Any], config: ModelConfig) -> ov.Model:
    """Input: ids (I,) int32. Output: pixels (H, W, 3) float32, nominally 0…1, not clipped.

    One picture at a time: the shapes are then static, which measured faster, and no picture can touch another.
    Constants point into `tensors` where these are float32 and writable (a private mapping): they must outlive what is
    compiled from the graph, which arranges a copy of its own.
    """
    return _Builder(tensors, config.vqgan).build(config.grid_side)


class _Builder:
    def __init__(self, tensors: Mapping[str, Any], config: VQGANConfig):
        self.tensors = tensors
        self.config = config

    def build(self, side: int) -> ov.Model:
        ids = parameter("ids", [side * side], ov.Type.i32)
        table = ops.constant(self._array("quantize.embedding.weight"))
        codes = ops.gather(table, ids, ops.constant(np.int32(0)))
        grid = ops.reshape(codes, np.array([1, side, side, self.config.embed_dim]), special_zero=False)
        x = self._conv(ops.transpose(grid, np.array([0, 3, 1, 2])), "post_quant_conv")
        x = self._conv(x, "decoder.conv_in")
        x = self._residual(x, "decoder.mid.block_1")
        x = self._attention(x, "decoder.mid.attn_1")
        x = self._residual(x, "decoder.mid.block_2")
        for level in reversed(range(len(self.config.ch_mult))):
            x = self._level(x, level)
        x = self._conv(ops.swish(self._group_norm(x, "decoder.norm_out")), "decoder.conv_out")
        picture = ops.squeeze(ops.transpose(x, np.array([0, 2, 3, 1])), np.array([0]))
        return ov.Model([result("pixels", picture)], [ids], "vqgan_decoder")

    def _level(self, x: Node, level: int) -> Node:
        prefix = f"decoder.up.{level}"
        for block in range(self.config.num_res_blocks + 1):
            x = self._residual(x, f"{prefix}.block.{block}")
            # Present in the checkpoint where the level's resolution is one of attn_resolutions.
            if f"{prefix}.attn.{block}.norm.weight" in self.tensors:
                x = self._attention(x, f"{prefix}.attn.{block}")
        if level == 0:
            return x
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
        return self._conv(x, f"{prefix}.upsample.conv")

    def _residual(self, x: Node, prefix: str) -> Node:
        h = self._conv(ops.swish(self._group_norm(x, f"{prefix}.norm1")), f"{prefix}.conv1")
        h = self._conv(ops.swish(self._group_norm(h, f"{prefix}.norm2")), f"{prefix}.conv2")
        if f"{prefix}.nin_shortcut.weight" in self.tensors:
            x = self._conv(x, f"{prefix}.nin_shortcut")
        return ops.add(x, h)

    def _attention(self, x: Node, prefix: str) -> Node:
        channels, height, width = (x.get_output_shape(0)[axis] for axis in (1, 2, 3))
        h = self._group_norm(x, f"{prefix}.norm")
        flat = np.array([1, channels, height * width])
        query, key, value = (ops.reshape(self._conv(h, f"{prefix}.{part}"), flat, special_zero=False) for part in "qkv")
        query = ops.multiply(query, ops.constant(np.float32(1 / math.sqrt(channels))))
        scores = ops.matmul(query, key, transpose_a=True, transpose_b=False)  # (1, queries, keys)
        mixed = ops.matmul(value, ops.softmax(scores, -1), transpose_a=False, transpose_b=True)
        mixed = ops.reshape(mixed, np.array([1, channels, height, width]), special_zero=False)
        return ops.add(x, self._conv(mixed, f"{prefix}.proj_out"))

    def _group_norm(self, x: Node, prefix: str) -> Node:
        scale, bias = (ops.constant(self._array(f"{prefix}.{part}")) for part in ("weight", "bias"))
        return ops.group_normalization(x, scale, bias, self.config.num_groups, _EPS)

    def _conv(self, x: Node, prefix: str) -> Node:
        """3×3 with a border of zeros, or 1×1."""
        weight = self._array(f"{prefix}.weight")
        border = [weight.shape[2] // 2] * 2
        make = shared_constant if weight.flags.writeable and weight is self.tensors[f"{prefix}.weight"] else constant
        x = ops.convolution(x, make(weight), [1, 1], border, border, [1, 1])
        return ops.add(x, ops.constant(self._array(f"{prefix}.bias").reshape(1, -1, 1, 1)))

    def _array(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.asarray(self.tensors[name], np.float32)
