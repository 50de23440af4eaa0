"""The VQGAN's layers written for bf16, so that the CPU runs little beside its convolutions.

To be compiled with bf16 as their precision.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from openvino import opset15 as ops

from dalle_server.engine.runners.cpu.openvino.ops import Node
from dalle_server.engine.runners.cpu.openvino.vqgan_layers import EPS, Layers
from dalle_server.engine.runners.cpu.openvino.weights import constant

_MIDDLE = 0.5  # of the range of pixels


class BF16Layers(Layers):
    """The same layers; group norm, doubling and the last layer (pixels clipped to 0…1) are computed in another way."""

    def pixels(self, x: Node, prefix: str) -> Node:
        """Computed around 0, where bf16 is finer than the 256 levels of a pixel."""
        x = self.add_bias(self.convolved(x, prefix), self.array(f"{prefix}.bias") - np.float32(_MIDDLE))
        return ops.add(ops.clamp(x, -_MIDDLE, _MIDDLE), ops.constant(np.float32(_MIDDLE)))

    def upsample(self, x: Node, prefix: str) -> Node:
        """The doubled picture's 3×3 convolution as one transposed convolution of the picture itself.

        Neighbours are equal after doubling, so their weights can be added beforehand: 4×4 weights with a stride of 2
        do 4/9 of the work.
        """
        weight = constant(doubled_kernel(self.array(f"{prefix}.weight")))
        x = ops.convolution_backprop_data(x, weight, [2, 2], pads_begin=[1, 1], pads_end=[1, 1], dilations=[1, 1])
        return self.add_bias(x, self.array(f"{prefix}.bias"))

    def norm(self, x: Node, prefix: str) -> Node:
        """Group norm as x·scale + bias, with both computed for each channel.

        The plugin's own wants channels first, where the convolutions want them last: it would be rearranged twice.
        """
        each = np.array([1, x.get_output_shape(0)[1], 1, 1])
        gain, shift = (ops.constant(self.array(f"{prefix}.{part}").reshape(each)) for part in ("weight", "bias"))
        mean = self._group_mean(x)
        distance = ops.subtract(x, mean)  # the mean of squares less the square of the mean would lose digits
        variance = self._group_mean(ops.multiply(distance, distance))
        scale = ops.divide(gain, ops.sqrt(ops.add(variance, ops.constant(np.float32(EPS)))))
        return ops.add(ops.multiply(x, scale), ops.subtract(shift, ops.multiply(scale, mean)))

    def _group_mean(self, x: Node) -> Node:
        """(1, C, H, W) → (1, C, 1, 1), equal within a group. Over small squares first, which threads share."""
        _, channels, height, _ = x.get_output_shape(0)
        size = height // self.height
        if size > 1:
            x = ops.avg_pool(x, [size] * 2, [0, 0], [0, 0], [size] * 2, True)
        grouped = np.array([1, self.num_groups, channels // self.num_groups, 1])
        mean = ops.reshape(ops.reduce_mean(x, np.array([2, 3]), True), grouped, special_zero=False)
        mean = ops.broadcast(ops.reduce_mean(mean, np.array([2]), True), grouped)
        return ops.reshape(mean, np.array([1, channels, 1, 1]), special_zero=False)


def doubled_kernel(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(O, I, 3, 3) → (I, O, 4, 4): the sums of the weights that meet the same place before doubling."""
    flipped = weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]  # as a transposed convolution reads them
    summed = np.zeros((*flipped.shape[:2], 4, 4), np.float32)
    for row in range(2):
        for column in range(2):
            summed[:, :, row : row + 3, column : column + 3] += flipped
    return summed
