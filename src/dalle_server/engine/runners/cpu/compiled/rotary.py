"""Rotary positions (Su et al. 2021, arXiv:2104.09864) as a table of cosines and sines.

Written out in sums and products, which every processor and library rounds alike: a library's cosine may be another one
on the next machine, and with it a picture.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

# π/2 in two parts: the first has so few bits that its multiples are exact.
_QUARTER = (1.57079632673412561417, 6.07710050650619224932e-11)
_TERMS = 9  # of each series, within ±π/4: the rest is below 1e-17


def rotary_table(num_positions: int, head_size: int, theta: float) -> NDArray[np.float32]:
    """(positions, 2, D/2): of each position and pair the cosine and the sine of position · theta^(−2i/D).

    Angles are rounded to float32 as the reference's are, whose error grows with the position.
    """
    places = np.arange(num_positions, dtype=np.float32)[:, None]
    angles = (places * _frequencies(head_size, theta)).astype(np.float64)
    quarters = np.rint(angles * (2 / math.pi))
    rest = angles - quarters * _QUARTER[0] - quarters * _QUARTER[1]
    cosine, sine = _series(rest, 0), rest * _series(rest, 1)
    turned = quarters.astype(np.int64) % 4  # cos(x + π/2) = −sin x, and so on
    cosines = np.choose(turned, [cosine, -sine, -cosine, sine])
    sines = np.choose(turned, [sine, cosine, -sine, -cosine])
    return np.stack([cosines, sines], 1).astype(np.float32)


def _frequencies(head_size: int, theta: float) -> NDArray[np.float32]:
    with localcontext(prec=30):
        powers = [Decimal(theta) ** (Decimal(-2 * i) / head_size) for i in range(head_size // 2)]
    return np.array([float(power) for power in powers], np.float32)


def _series(x: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    """Taylor's: of cos x for 0, of sin x / x for 1."""
    squared, sum_ = x * x, np.zeros_like(x)
    for k in reversed(range(_TERMS)):
        sum_ = sum_ * squared + (-1) ** k / math.factorial(2 * k + first)
    return sum_
