"""The VQGAN's layers with the convolutions of its residual blocks in int8, everything else as in bf16.

What these convolutions read is swish(group norm(…)): never below -0.2785, and group norm keeps the rest within a range
that hardly depends on the picture, so that it can be measured once for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from openvino import opset15 as ops

from dalle_server.engine.runners.cpu.openvino.ops import Node, result
from dalle_server.engine.runners.cpu.openvino.vqgan_bf16 import BF16Layers
from dalle_server.engine.runners.cpu.openvino.weights import constant
from dalle_server.models.config import ModelConfig

Ranges = Mapping[str, float]  # convolution → the largest input it is prepared for

_LOWEST = 0.2785  # swish is never below minus this


class Int8Layers(BF16Layers):
    """As in bf16; the convolutions named in `ranges` (none: all is bf16) are computed in int8."""

    def __init__(self, tensors: Mapping[str, Any], config: ModelConfig, ranges: Ranges):
        super().__init__(tensors, config)
        self.ranges = ranges

    def conv(self, x: Node, prefix: str) -> Node:
        if prefix not in self.ranges:
            return super().conv(x, prefix)
        weight = self.array(f"{prefix}.weight")
        scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / np.float32(127)
        values = np.rint(weight / np.where(scale == 0, 1, scale)).astype(np.int8)
        quantised = ops.multiply(ops.convert(constant(values), "f32"), ops.constant(scale))
        x = ops.convolution(_quantise(x, self.ranges[prefix]), quantised, [1, 1], [1, 1], [1, 1], [1, 1])
        return self.add_bias(x, self.array(f"{prefix}.bias"))


def _quantise(x: Node, highest: float) -> Node:
    """256 steps up to `highest`, one of them at 0 exactly: that is what the border is made of."""
    below = np.ceil(255 * _LOWEST / (_LOWEST + highest))  # steps below 0
    low, high = (ops.constant(np.float32(end)) for end in (-highest * below / (255 - below), highest))
    return ops.fake_quantize(x, low, high, low, high, 256)


class ProbingLayers(BF16Layers):
    """In bf16, with outputs more: the largest input of each convolution that int8 is for, by its name."""

    def __init__(self, tensors: Mapping[str, Any], config: ModelConfig):
        super().__init__(tensors, config)
        self._highest: dict[str, Node] = {}

    def probes(self) -> list[Node]:
        return [result(name, value) for name, value in self._highest.items()]

    def conv(self, x: Node, prefix: str) -> Node:
        if prefix.endswith((".conv1", ".conv2")):
            self._highest[prefix] = ops.reduce_max(x, np.array([0, 1, 2, 3]))
        return super().conv(x, prefix)
