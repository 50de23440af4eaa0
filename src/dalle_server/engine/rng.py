"""The noise of sampling: a pure function of (seed, image index, step, token id).

Philox4x32-10 is the counter-based generator of J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw,
"Parallel random numbers: as easy as 1, 2, 3" (SC 2011). There is no state to advance, so a picture's
noise cannot depend on what else is drawn, in which order, or on which device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# numpy int64 arrays, or torch int64 tensors: `philox4x32` uses operators only, so both go through the same code.
Words = Any

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and √3 − 1: the key's increments
_ROUNDS = 10
MASK32 = 0xFFFFFFFF


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """Four 32-bit words for each counter. All words are held in int64 and broadcast against each other.

    int64 is the type that numpy and torch share. A product of two words may wrap to a negative number, but its 64 bits
    are right; the shift by 32 copies the sign into the upper bits, and the mask takes them away again.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & MASK32, product0 & MASK32
        high1, low1 = (product1 >> 32) & MASK32, product1 & MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & MASK32, (k1 + _WEYL[1]) & MASK32
    return c0, c1, c2, c3


def gumbel(token_ids: ArrayLike, steps: ArrayLike, image_indices: ArrayLike, seeds: ArrayLike) -> NDArray[np.float64]:
    """Standard Gumbel noise; the arguments broadcast. argmax(logits + noise) draws from softmax(logits).

    u = (x0 + ½)·2⁻³² lies strictly inside (0, 1), so the noise is always finite.
    """
    ids, steps, indices, seeds = (
        np.atleast_1d(np.asarray(a, np.int64)) for a in (token_ids, steps, image_indices, seeds)
    )
    zero = np.zeros(1, np.int64)
    word = philox4x32((ids, steps, indices & MASK32, zero), (seeds & MASK32, (seeds >> 32) & MASK32))[0]
    uniform = (word + 0.5) * 2.0**-32
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise
