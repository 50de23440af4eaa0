"""Keys and values as attention.h lays them out: what is kept of a text, and what the decode step remembers of slots."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.compiled.layers import Layers
from dalle_server.engine.runners.cpu.compiled.stack import aligned_zeros


@dataclass(slots=True)
class KeptText:
    """A text while it is read and afterwards: keys and values of its `ids` in every layer that looks at them. The
    pictures of a prompt, and a cache of prompts, all have the same one; a slot copies nothing.
    """

    ids: NDArray[np.int32]  # those that are read
    cells: NDArray[np.uint8]  # (L, H, a head's bytes)
    num_read: int = 0

    @property
    def is_whole(self) -> bool:
        return self.num_read == len(self.ids)

    @property
    def nbytes(self) -> int:
        return self.cells.nbytes


def head_cells(library: Any, heads: tuple[int, ...], positions: int, head_size: int, cell: int) -> NDArray[np.uint8]:
    """(…, a head's bytes); … is `heads`."""
    return aligned_zeros((*heads, library.cache_bytes(1, positions, head_size, cell)), np.uint8)


class Caches:
    """Two rows a slot: keys and values of the picture, (L, rows, H, a head's bytes), and where those of its text are.

    The pages of a slot are there as soon as it is used, and large ones: a step reads them a tenth faster.
    """

    def __init__(self, library: Any, layers: Layers, num_slots: int, num_positions: int, cell: int):
        rows = 2 * num_slots
        self.cells = head_cells(
            library, (layers.num_layers, rows, layers.kv_heads), num_positions, layers.head_size, cell
        )
        self.texts = (ctypes.c_void_p * rows)()
        self.text_lengths = np.zeros(rows, np.int32)
        self.kept: list[KeptText | None] = [None] * rows

    def put_texts(self, slot: int, texts: Sequence[KeptText]) -> None:
        """A slot holds them until it gets others."""
        for row, text in enumerate(texts, start=2 * slot):
            self.kept[row] = text
            self.texts[row], self.text_lengths[row] = text.cells.ctypes.data, len(text.ids)
