"""Weights in the order in which the compiled code reads them (product.h): one order for every build."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.quantise import GROUP_SIZE, Quantised

LANES = 16  # outputs in a tile
QUAD = 4  # inputs that one instruction multiplies and adds
INT8_BYTES = LANES * (GROUP_SIZE + 4)  # a group's weights, then its scales in float32


def tile_shape(num_outputs: int, num_inputs: int) -> tuple[int, int]:
    """(tiles, groups)."""
    return -(-num_outputs // LANES), -(-num_inputs // GROUP_SIZE)


def tile_int8(weight: Quantised) -> NDArray[np.int8]:
    """→ (tiles, groups, INT8_BYTES); outputs that fill up the last tile are zero."""
    outputs, groups, group = weight.values.shape
    tiles = -(-outputs // LANES)
    values = np.zeros((tiles * LANES, groups, GROUP_SIZE), np.int8)
    values[:outputs, :, :group] = weight.values
    scales = np.zeros((tiles * LANES, groups), np.float32)
    scales[:outputs] = weight.scales[:, :, 0]
    laid_out = np.empty((tiles, groups, INT8_BYTES), np.int8)
    quads = values.reshape(tiles, LANES, groups, GROUP_SIZE // QUAD, QUAD).transpose(0, 2, 3, 1, 4)
    laid_out[:, :, : LANES * GROUP_SIZE] = quads.reshape(tiles, groups, -1)
    by_group = np.ascontiguousarray(scales.reshape(tiles, LANES, groups).transpose(0, 2, 1))
    laid_out[:, :, LANES * GROUP_SIZE :] = by_group.view(np.int8)
    return laid_out


def tile_fp32(weight: NDArray[Any]) -> NDArray[np.float32]:
    """(out, in) → (tiles, groups, 64 inputs × 16 outputs), filled up with zeros."""
    outputs, inputs = weight.shape
    tiles, groups = tile_shape(outputs, inputs)
    padded = np.zeros((tiles * LANES, groups * GROUP_SIZE), np.float32)
    padded[:outputs, :inputs] = weight
    return np.ascontiguousarray(padded.reshape(tiles, LANES, -1).swapaxes(1, 2)).reshape(tiles, groups, -1)
