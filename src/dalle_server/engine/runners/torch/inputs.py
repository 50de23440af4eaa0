"""One step's parameters as two small arrays: what travels to the device, and a CUDA graph's static input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dalle_server.engine.runners.base import StepRow

NARROW = 1024  # candidates: fewer are found faster than the whole codebook is sorted, and need less noise


class _Row:
    """One row of an array of StepInputs, under its own name."""

    def __init__(self, array: str, number: int):
        self._array, self._number = array, number

    def __get__(self, inputs: StepInputs, owner: type | None = None) -> Tensor:
        array: Tensor = getattr(inputs, self._array)
        return array[self._number]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Batch row b is slot b; a slot that does not take part computes too, and is ignored (`active` 0).

    integers (7, B) int64: position, active, forced, top_k, seed, image index, near;
    floats (4, B) float32: temperature, top_p, condition_scale, pull.
    `is_narrow`: every picture of the step draws from at most NARROW candidates.
    """

    integers: Tensor
    floats: Tensor
    is_narrow: bool = False

    @classmethod
    def pack(cls, rows: Sequence[StepRow], next_positions: NDArray[np.int64]) -> StepInputs:
        """`next_positions` (B,): where a slot without a row may write, since its next own token will overwrite it."""
        size = len(next_positions)
        integers = np.zeros((7, size), np.int64)
        integers[0], integers[2] = next_positions, -1
        floats = np.ones((4, size), np.float32)
        floats[3] = 0
        for row in rows:
            sampling, key = row.sampling, row.key
            place = row.position, 1, row.forced, sampling.top_k or 0
            integers[:, row.slot] = *place, key.seed, key.index, max(0, row.near)
            scale = _scale(sampling.condition_scale)
            floats[:, row.slot] = sampling.temperature or 1.0, sampling.top_p or 1.0, scale, row.pull
        is_narrow = all(0 < (row.sampling.top_k or 0) <= NARROW for row in rows)
        return cls(torch.from_numpy(integers), torch.from_numpy(floats), is_narrow)

    @classmethod
    def empty(cls, num_images: int, device: torch.device, *, is_narrow: bool) -> StepInputs:
        inputs = cls.pack([], np.zeros(num_images, np.int64))
        return replace(inputs.to(device), is_narrow=is_narrow)

    def at_guidance_1(self) -> StepInputs:
        """The same step without guidance, of which nothing is remembered."""
        integers, floats = self.integers.clone(), self.floats.clone()
        integers[1], floats[2] = 0, 1.0
        return StepInputs(integers, floats, self.is_narrow)

    def to(self, device: torch.device) -> StepInputs:
        return StepInputs(self.integers.to(device), self.floats.to(device), self.is_narrow)

    def copy_from(self, other: StepInputs) -> None:
        """Host to device without waiting; pinned, or the copy would wait after all."""
        self.integers.copy_(other.integers.pin_memory(), non_blocking=True)
        self.floats.copy_(other.floats.pin_memory(), non_blocking=True)

    @property
    def active(self) -> Tensor:
        return self.integers[1].bool()

    positions = _Row("integers", 0)
    forced = _Row("integers", 2)
    top_k = _Row("integers", 3)
    seeds = _Row("integers", 4)
    image_indices = _Row("integers", 5)
    near = _Row("integers", 6)
    temperature = _Row("floats", 0)
    top_p = _Row("floats", 1)
    condition_scale = _Row("floats", 2)
    pull = _Row("floats", 3)


def _scale(condition_scale: float | None) -> float:
    return 1.0 if condition_scale is None else condition_scale
