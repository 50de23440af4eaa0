"""int8 weights with one scale for each 64 inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 64  # inputs that share a scale; finer costs reading, coarser costs accuracy
_CHUNK_BYTES = 1 << 20  # quantise this much float32 at a time: it stays in the cache


@dataclass(frozen=True, slots=True)
class Quantised:
    """w[o, i] ≈ values[o, g, j]·scales[o, g], i = g·group + j. Inputs are padded with zeros to whole groups."""

    values: NDArray[np.int8]  # (out, groups, group)
    scales: NDArray[np.float32]  # (out, groups, 1)


def quantise(weight: NDArray[Any]) -> Quantised:
    """Symmetric round-to-nearest int8 of an (out, in) matrix of any float type, a few rows at a time.

    Raises ValueError for a weight that is not finite.
    """
    rows, inputs = weight.shape
    groups, group = group_shape(inputs)
    values = np.empty((rows, groups, group), np.int8)
    scales = np.empty((rows, groups, 1), np.float32)
    step = max(1, _CHUNK_BYTES // (4 * inputs))
    for start in range(0, rows, step):
        part = np.zeros((min(step, rows - start), groups * group), np.float32)
        part[:, :inputs] = weight[start : start + step]
        part = part.reshape(len(part), groups, group)
        scale = np.maximum(part.max(axis=2, keepdims=True), -part.min(axis=2, keepdims=True))
        scale /= 127
        if not np.isfinite(scale).all():
            raise ValueError("a weight is not finite")
        scales[start : start + step] = scale
        # An all-zero group has the scale 0; dividing by 1 instead keeps its zeros.
        part *= 1 / np.where(scale == 0, 1, scale)
        np.rint(part, out=part)
        values[start : start + step] = part
    return Quantised(values, scales)


def group_shape(num_inputs: int) -> tuple[int, int]:
    """(groups, inputs in a group): a layer of fewer inputs than a group has one of its own size."""
    group = min(GROUP_SIZE, num_inputs)
    return -(-num_inputs // group), group
