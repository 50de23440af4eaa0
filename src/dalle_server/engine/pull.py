"""Towards a given picture: each code's logit falls with the distance of the code from the given one.

A code at d from the given one, in the codebook, is drawn as if its odds were e^(−pull · d²) times what the model says;
d² is 1 for two codes taken at random, on average. Coordinates are rounded to whole numbers of at most 12 bits, so that
every product and every sum below 2²⁴ is exact in float32, in any order: the same bits from any library on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.base import StepRow

LONGEST = 2.0**11  # no code is longer, once it is whole numbers: |a|² + |b|² + 2·|a·b| ≤ 2²⁴

Floats = NDArray[np.float32]


class CodeDistances:
    """Of a codebook (C, E) of any float type; looked at when the first picture asks: most servers never need it."""

    def __init__(self, codebook: Any):
        self._codebook = codebook

    @cached_property
    def codes(self) -> Floats:
        """(C, E) whole numbers."""
        exact = np.asarray(self._codebook, np.float64)
        squares = np.zeros(len(exact))
        for column in exact.T:  # one after the other: a library's sum may end in another last bit on the next machine
            squares += column * column
        longest = float(np.sqrt(squares.max()))
        room = LONGEST - np.sqrt(exact.shape[1]) / 2  # what rounding may add
        scale = 2.0 ** np.floor(np.log2(room / longest)) if longest > 0 else 1.0
        return np.rint(exact * scale).astype(np.float32)

    @cached_property
    def squares(self) -> Floats:
        """(C,) squared lengths of `codes`."""
        found: Floats = np.square(self.codes).sum(axis=1)
        return found

    @cached_property
    def unit(self) -> np.float32:
        """One over the mean squared distance of two codes, each taken at random. All codes alike: nothing is far."""
        whole = self.codes.astype(np.int64)
        mean = 2 * (np.square(whole).sum() * len(whole) - np.square(whole.sum(axis=0)).sum()) / len(whole) ** 2
        return np.float32(1 / mean if mean > 0 else 0.0)

    def to(self, ids: NDArray[np.integer[Any]]) -> Floats:
        """(N,) ids → (N, C) squared distances, whole numbers."""
        found: Floats = self.squares[ids][:, None] + self.squares - 2 * (self.codes[ids] @ self.codes.T)
        return found

    def lowered(self, logits: Floats, rows: Sequence[StepRow]) -> Floats:
        """(N, C) guided logits, lowered for the rows that are drawn towards a code; the others are what they were."""
        places = [place for place, row in enumerate(rows) if row.pull > 0]
        if not places:
            return logits
        ids, which = np.unique([rows[place].near for place in places], return_inverse=True)
        pulls = np.array([rows[place].pull for place in places], np.float32) * self.unit
        lowered = logits.copy()
        lowered[places] -= pulls[:, None] * self.to(ids)[which]
        return lowered
