"""A convolution's weights as c/convolution.h reads them: exact in float32, or rounded to int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.compiled.tiles import LANES, QUAD

# The taps of 1×1 and of 3×3 convolutions: (row, column) in what is read, framed for a 3×3 one.
HERE = ((0, 0),)
AROUND = tuple((row, column) for row in range(3) for column in range(3))

_LOWEST = 0.2785  # swish is never below minus this
_MOST = 127  # that the magnitudes of two neighbours' weights add up to, before they are rounded

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Steps:
    """The 256 values that an int8 convolution's inputs are rounded to: (value − zero) · step."""

    step: float
    zero: int  # exactly 0: the frame around a map is made of it

    @classmethod
    def of_swish(cls, highest: float) -> Steps:
        """From swish's minimum to `highest`."""
        zero = int(np.ceil(255 * _LOWEST / (_LOWEST + highest)))
        return cls(highest / (255 - zero), zero)


@dataclass(frozen=True, slots=True)
class Convolution:
    """O outputs, filled up to whole tiles of 16; inputs likewise."""

    weights: Array  # (tiles, taps, units, 64 bytes)
    bias: NDArray[np.float32]  # (16 · tiles,)
    outputs: int
    taps: tuple[tuple[int, int], ...]
    steps: Steps | None = None  # None: float32
    scale: NDArray[np.float32] | None = None  # (16 · tiles,) what one whole number of a sum is worth
    start: NDArray[np.int32] | None = None  # (16 · tiles,) what a sum begins with, so that `zero` counts for 0

    @property
    def num_units(self) -> int:
        return int(self.weights.shape[2])


def exact(weight: Array, bias: Array, taps: tuple[tuple[int, int], ...]) -> Convolution:
    """From weights (O, I, taps)."""
    padded = _padded(weight)
    outputs, inputs, num_taps = padded.shape
    tiles = padded.reshape(outputs // LANES, LANES, inputs, num_taps).transpose(0, 3, 2, 1)
    return Convolution(np.ascontiguousarray(tiles), _vector(bias), len(weight), taps)


def int8(weight: Array, bias: Array, taps: tuple[tuple[int, int], ...], steps: Steps, lowered: int) -> Convolution:
    """From weights (O, I, taps); a scale for each output.

    Raises ValueError for a weight that is not finite.
    """
    padded = _padded(weight)
    outputs, inputs, num_taps = padded.shape
    pairs = np.abs(padded).reshape(outputs, inputs // 2, 2, num_taps).sum(axis=2)
    scale = pairs.max(axis=(1, 2)) / np.float32(_MOST)
    if not np.isfinite(scale).all():
        raise ValueError("a weight is not finite")
    padded *= (1 / np.where(scale == 0, 1, scale))[:, None, None]
    values = np.rint(padded, out=padded).astype(np.int8)
    start = (lowered - steps.zero) * values.sum(axis=(1, 2), dtype=np.int32)
    quads = values.reshape(outputs // LANES, LANES, inputs // QUAD, QUAD, num_taps).transpose(0, 4, 2, 1, 3)
    tiles = np.ascontiguousarray(quads).reshape(*quads.shape[:3], LANES * QUAD)
    scale = scale * np.float32(steps.step)
    return Convolution(tiles, _vector(bias), len(weight), taps, steps, scale, start.astype(np.int32))


def doubled(weight: Array, bias: Array) -> list[Convolution]:
    """A 3×3 convolution (O, I, 3, 3) of the doubled map as four 2×2 ones of the map itself.

    Neighbours are equal after doubling, so the weights that meet the same place are added beforehand: 4/9 of the work.
    Each of the four writes every second row and column of the result. They begin at (0, 0), (0, 1), (1, 0) and (1, 1).
    """
    square, parts = np.asarray(weight, np.float32), []
    for row in range(2):
        for column in range(2):
            summed = _merged(_merged(square, 2, row), 3, column).reshape(*square.shape[:2], 4)
            taps = tuple((row + y, column + x) for y in range(2) for x in range(2))
            parts.append(exact(summed, bias, taps))
    return parts


def _merged(weight: Array, axis: int, parity: int) -> Array:
    """Three weights along an axis → two: those that meet the same place before doubling are added."""
    first, second, third = np.split(weight, 3, axis)
    return np.concatenate([first, second + third] if parity == 0 else [first + second, third], axis)


def _padded(weight: Array) -> NDArray[np.float32]:
    outputs, inputs, num_taps = weight.shape
    padded = np.zeros((whole(outputs), whole(inputs), num_taps), np.float32)
    padded[:outputs, :inputs] = weight
    return padded


def _vector(values: Array) -> NDArray[np.float32]:
    padded = np.zeros(whole(len(values)), np.float32)
    padded[: len(values)] = values
    return padded


def whole(channels: int) -> int:
    """Channels rounded up to whole tiles."""
    return -(-channels // LANES) * LANES
