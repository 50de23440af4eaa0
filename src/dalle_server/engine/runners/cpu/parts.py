"""The three parts that a CPU runner is put together from, and what they hand to each other.

A part may come from any library: texts and steps must be of one family and agree on what an encoded text is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.base import TextTokens


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One new position of N images: where it is written, and the token that was written before it."""

    slots: NDArray[np.int32]  # (N,)
    positions: NDArray[np.int32]  # (N,) 0…I-1
    last_tokens: NDArray[np.int32]  # (N,) ids; meaningless at position 0
    guidance: NDArray[np.float32]  # (N,)


class Texts(Protocol):
    """The text side of a model."""

    def open(self, text: TextTokens) -> Any:
        """An EncodedText, as the step's `admit` takes it. Raises MemoryError."""
        ...

    def read(self, text: Any, num_tokens: int) -> None:
        """As for a runner's read_text: alone, so that no company can touch it."""
        ...

    def close(self) -> None: ...


class Step(Protocol):
    """The decode step, with the caches of `num_slots` slots and of one more, for rows without a picture."""

    row_buckets: tuple[int, ...]  # batch sizes (in images) that a step is padded to; ascending

    def admit(self, slot: int, conditional: Any, unconditional: Any) -> None:
        """Begin a new image in `slot`: nothing that was there before is seen again. Raises MemoryError."""
        ...

    def logits(self, batch: StepBatch) -> NDArray[np.float32]:
        """(N, C), guided and cut to the codebook. Raises MemoryError."""
        ...

    def close(self) -> None: ...


class Pixels(Protocol):
    """The VQGAN, one picture at a time: its pixels then depend on nothing else."""

    def decode(self, grid: NDArray[np.int32], *, wraps: bool = False) -> NDArray[np.uint8]:
        """(I,) ids → (H, W, 3), clipped and truncated; `wraps` as for a runner's detokenize."""
        ...

    def encode(self, picture: NDArray[np.uint8]) -> NDArray[np.int32]:
        """(H, W, 3) → (I,) ids. Raises NotSupported for a checkpoint without an encoder."""
        ...

    def close(self) -> None: ...
