"""Keys and values laid out as attention.h reads them, and what the decode step remembers of every slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.compiled.layers import Layers
from dalle_server.engine.runners.cpu.compiled.stack import aligned_zeros, sparse_zeros
from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.parts import TextCache

Array = NDArray[Any]


def cache_arrays(
    heads: tuple[int, ...],
    head_size: int,
    positions: int,
    dtype: type[np.floating[Any]],
    zeros: Callable[[tuple[int, ...], Any], Array] = aligned_zeros,
) -> tuple[Array, Array]:
    """Keys (…, blocks, D, 16) and values (…, positions, W), W = D rounded up to 16; … is `heads`."""
    blocks, width = -(-positions // LANES), -(-head_size // LANES) * LANES
    return zeros((*heads, blocks, head_size, LANES), dtype), zeros((*heads, positions, width), dtype)


class Caches:
    """Keys and values of (L, rows, H) heads, two rows a slot: over the picture, and over the text.

    `text_length` None: the text is the picture's prefix, its positions come before the picture's.
    """

    def __init__(
        self, layers: Layers, num_slots: int, num_positions: int, text_length: int | None, dtype: type[np.floating[Any]]
    ):
        rows = 2 * num_slots
        shape = (layers.num_layers, rows, layers.kv_heads)
        self.is_prefixed = text_length is None
        # Room for the longest prompt, of which hardly any picture needs much.
        zeros = sparse_zeros if self.is_prefixed else aligned_zeros
        arrays = cache_arrays(shape, layers.head_size, num_positions, dtype, zeros)
        self.arrays = dict(zip(("keys", "values"), arrays, strict=True))
        if text_length is not None:
            cross = cache_arrays(shape, layers.head_size, text_length, dtype)
            self.arrays |= zip(("cross_keys", "cross_values"), cross, strict=True)
        self.text_lengths = np.zeros(rows, np.int32) if self.is_prefixed else np.ones(rows, np.int32)

    def write_texts(self, slot: int, texts: Sequence[TextCache]) -> None:
        to_keys, to_values = (self.arrays[name if self.is_prefixed else f"cross_{name}"] for name in ("keys", "values"))
        for row, text in enumerate(texts, start=2 * slot):
            length = self.text_lengths[row] = text.length
            keys, values = text.keys_values[:, 0, :, :length], text.keys_values[:, 1, :, :length]
            to_values[:, row, :, :length, : values.shape[-1]] = values
            for start in range(0, length, LANES):
                block = keys[:, :, start : start + LANES].swapaxes(2, 3)
                to_keys[:, row, :, start // LANES, :, : block.shape[-1]] = block
