"""int8 weights in the order in which the compiled step reads them (native/product.h)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.openvino_quantised import GROUP_SIZE, Quantised

LANES = 16  # outputs in a tile
QUAD = 4  # inputs that one instruction multiplies and adds
GROUP_BYTES = LANES * (GROUP_SIZE + 4)  # a group's weights, then its scales in float32
_OFFSET = 128  # the instruction takes weights as unsigned bytes


def tile_shape(num_outputs: int, num_inputs: int) -> tuple[int, int, int]:
    """(tiles, groups, bytes)."""
    return -(-num_outputs // LANES), -(-num_inputs // GROUP_SIZE), GROUP_BYTES


def tile(weight: Quantised) -> NDArray[np.uint8]:
    """→ (tiles, groups, GROUP_BYTES); outputs that fill up the last tile are zero."""
    outputs, groups, group = weight.values.shape
    tiles = -(-outputs // LANES)
    values = np.zeros((tiles * LANES, groups, GROUP_SIZE), np.int8)
    values[:outputs, :, :group] = weight.values
    scales = np.zeros((tiles * LANES, groups), np.float32)
    scales[:outputs] = weight.scales[:, :, 0]
    laid_out = np.empty((tiles, groups, GROUP_BYTES), np.uint8)
    quads = values.reshape(tiles, LANES, groups, GROUP_SIZE // QUAD, QUAD).transpose(0, 2, 3, 1, 4)
    laid_out[:, :, : LANES * GROUP_SIZE] = (quads.reshape(tiles, groups, -1) + np.int16(_OFFSET)).astype(np.uint8)
    by_group = np.ascontiguousarray(scales.reshape(tiles, LANES, groups).transpose(0, 2, 1))
    laid_out[:, :, LANES * GROUP_SIZE :] = by_group.view(np.uint8)
    return laid_out
