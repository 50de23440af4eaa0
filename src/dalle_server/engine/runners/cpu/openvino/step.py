"""What the OpenVINO runner asks of its decode step: a graph of OpenVINO's own, or compiled code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray

TextCache = tuple[ov.Tensor, int]  # keys and values (L, 2, H, T, D) of the cache's type, number of real positions


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One new position of N images: where it is written, and what was written before it."""

    slots: NDArray[np.int32]  # (N,)
    positions: NDArray[np.int32]  # (N,)
    guidance: NDArray[np.float32]  # (N,)
    embeddings: NDArray[np.float32]  # (N, d), token plus position


class Decoder(Protocol):
    """The decode step of one model, with the caches of its slots and of one more, for rows without a picture."""

    row_buckets: tuple[int, ...]

    def admit(self, slot: int, texts: list[TextCache]) -> None:
        """Take the keys and values of a conditional and an unconditional text for a new image."""
        ...

    def logits(self, inputs: StepInputs) -> NDArray[np.float32]:
        """(N, C), guided."""
        ...

    def close(self) -> None: ...
