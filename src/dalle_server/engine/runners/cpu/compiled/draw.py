"""The draw in compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dalle_server.engine.runners.base import StepRow
from dalle_server.engine.sampling import Draw, Survivors


def compiled_draw(library: Any) -> Draw:
    """`gumbel_max` in a twentieth of its time: with a whole codebook to draw from, it would outweigh the step."""

    def draw(rows: Sequence[StepRow], survivors: Sequence[Survivors]) -> list[int]:
        drawn = []
        for row, (ids, logits) in zip(rows, survivors, strict=True):
            ids, logits = np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(logits, np.float32)
            pointers = logits.ctypes.data, ids.ctypes.data, len(ids)
            drawn.append(int(ids[library.draw(*pointers, row.key.seed, row.key.index, row.position)]))
        return drawn

    return draw
