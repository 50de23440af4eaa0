"""What the compiled decode step remembers of every slot: keys and values, laid out as attention.h reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.parts import TextCache
from dalle_server.families.dalle_bart import sizes
from dalle_server.models.config import ModelConfig

_ALIGNMENT = 64  # bytes: a cache line


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin on a cache line."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    zeros: NDArray[Any] = raw[start : start + num_bytes].view(dtype).reshape(shape)
    return zeros


class Caches:
    """Keys (L, rows, H, blocks, D, 16) and values (L, rows, H, positions, W), W = D rounded up to 16."""

    def __init__(self, config: ModelConfig, num_slots: int, dtype: type[np.floating[Any]]):
        bart = sizes(config)
        heads, size = bart.decoder_attention_heads, bart.d_model // bart.decoder_attention_heads
        layers, rows = bart.decoder_layers, 2 * num_slots
        width = -(-size // LANES) * LANES

        def make(positions: int) -> tuple[NDArray[Any], NDArray[Any]]:
            blocks = -(-positions // LANES)
            keys = aligned_zeros((layers, rows, heads, blocks, size, LANES), dtype)
            return keys, aligned_zeros((layers, rows, heads, positions, width), dtype)

        self.keys, self.values = make(bart.image_length)
        self.cross_keys, self.cross_values = make(bart.max_text_length)
        self.text_lengths = np.ones(rows, np.int32)

    def write_texts(self, slot: int, texts: Sequence[TextCache]) -> None:
        for row, text in enumerate(texts, start=2 * slot):
            length = self.text_lengths[row] = text.length
            keys, values = text.keys_values[:, 0, :, :length], text.keys_values[:, 1, :, :length]
            self.cross_values[:, row, :, :length, : values.shape[-1]] = values
            for start in range(0, length, LANES):
                block = keys[:, :, start : start + LANES].swapaxes(2, 3)
                self.cross_keys[:, row, :, start // LANES, :, : block.shape[-1]] = block
