"""Keys and values laid out as attention.h reads them, and what the decode step remembers of every slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.compiled.stack import aligned_zeros
from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.parts import TextCache
from dalle_server.families.dalle_bart import DalleBartConfig


def cache_arrays(
    heads: tuple[int, ...], head_size: int, positions: int, dtype: type[np.floating[Any]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Keys (…, blocks, D, 16) and values (…, positions, W), W = D rounded up to 16; … is `heads`."""
    blocks, width = -(-positions // LANES), -(-head_size // LANES) * LANES
    keys = aligned_zeros((*heads, blocks, head_size, LANES), dtype)
    return keys, aligned_zeros((*heads, positions, width), dtype)


class Caches:
    """Keys and values of (L, rows, H) heads, over the picture and over the text; two rows a slot."""

    def __init__(self, config: DalleBartConfig, num_slots: int, dtype: type[np.floating[Any]]):
        heads, rows = config.decoder_attention_heads, 2 * num_slots
        shape, head_size = (config.decoder_layers, rows, heads), config.d_model // heads
        self.keys, self.values = cache_arrays(shape, head_size, config.image_length, dtype)
        self.cross_keys, self.cross_values = cache_arrays(shape, head_size, config.max_text_length, dtype)
        self.text_lengths = np.ones(rows, np.int32)

    def write_texts(self, slot: int, texts: Sequence[TextCache]) -> None:
        for row, text in enumerate(texts, start=2 * slot):
            length = self.text_lengths[row] = text.length
            keys, values = text.keys_values[:, 0, :, :length], text.keys_values[:, 1, :, :length]
            self.cross_values[:, row, :, :length, : values.shape[-1]] = values
            for start in range(0, length, LANES):
                block = keys[:, :, start : start + LANES].swapaxes(2, 3)
                self.cross_keys[:, row, :, start // LANES, :, : block.shape[-1]] = block
