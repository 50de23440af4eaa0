"""The order of the VQGAN's layers: a grid of codes to one picture. How a layer is computed: vqgan_layers.py.

One picture at a time: the shapes are then static, which measured faster, and no picture can touch another.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from dalle_server.engine.runners.cpu.openvino.ops import Node, parameter, result
from dalle_server.engine.runners.cpu.openvino.vqgan_layers import Layers


def build_decoder(layers: Layers) -> ov.Model:
    """Input: ids (I,) int32. Output: pixels (H, W, 3) float32, nominally 0…1; clipped or not as the layers do it."""
    ids = parameter("ids", [layers.height * layers.width], ov.Type.i32)
    x = layers.conv(layers.codes(ids), "post_quant_conv")
    x = layers.conv(x, "decoder.conv_in")
    x = _middle(layers, x, "decoder.mid")
    for level in reversed(range(layers.num_levels)):
        x = _level(layers, x, f"decoder.up.{level}", layers.num_res_blocks + 1)
        if level:
            x = layers.upsample(x, f"decoder.up.{level}.upsample.conv")
    x = layers.pixels(ops.swish(layers.norm(x, "decoder.norm_out")), "decoder.conv_out")
    picture = ops.squeeze(ops.transpose(x, np.array([0, 2, 3, 1])), np.array([0]))
    return ov.Model([result("pixels", picture), *layers.probes()], [ids], "vqgan_decoder")


def _middle(layers: Layers, x: Node, prefix: str) -> Node:
    x = layers.residual(x, f"{prefix}.block_1")
    x = layers.attention(x, f"{prefix}.attn_1")
    return layers.residual(x, f"{prefix}.block_2")


def _level(layers: Layers, x: Node, prefix: str, num_blocks: int) -> Node:
    for block in range(num_blocks):
        x = layers.residual(x, f"{prefix}.block.{block}")
        # Present in the checkpoint where the level's resolution is one of attn_resolutions.
        if layers.has(f"{prefix}.attn.{block}.norm"):
            x = layers.attention(x, f"{prefix}.attn.{block}")
    return x
