"""The order of the VQGAN's layers: a grid of codes to one picture, and back. How each is computed: vqgan_layers.py.

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


def build_encoder(layers: Layers) -> ov.Model:
    """Input: pixels (H, W, 3) float32 in 0…1. Output: features (I, E) float32; the nearest codebook entry is the id."""
    pixels = parameter("pixels", [layers.height_px, layers.width_px, 3], ov.Type.f32)
    x = ops.transpose(ops.unsqueeze(pixels, np.array([0])), np.array([0, 3, 1, 2]))
    x = layers.conv(x, "encoder.conv_in")
    for level in range(layers.num_levels):
        x = _level(layers, x, f"encoder.down.{level}", layers.num_res_blocks)
        if level < layers.num_levels - 1:
            x = layers.downsample(x, f"encoder.down.{level}.downsample.conv")
    x = _middle(layers, x, "encoder.mid")
    x = layers.conv(ops.swish(layers.norm(x, "encoder.norm_out")), "encoder.conv_out")
    x = layers.conv(x, "quant_conv")
    width = x.get_output_shape(0)[1]
    features = ops.reshape(ops.transpose(x, np.array([0, 2, 3, 1])), np.array([-1, width]), special_zero=False)
    return ov.Model([result("features", features)], [pixels], "vqgan_encoder")


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
