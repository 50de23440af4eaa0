"""From logits to a token: guide → temperature → top_k → top_p → Gumbel-max, in numpy.

The order and the ties are those of dalle-mini's generate(); the noise is ours (rng.py), so that a token
depends on its own logits and its own (seed, image index, step) alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.rng import gumbel
from dalle_server.engine.runners.base import NAN_TOKEN, StepRow
from dalle_server.generation import SamplingParams

Logits = NDArray[np.float32]

# Probabilities are summed as whole multiples of this part of the largest: a GPU adds floats in an order that may
# change from call to call, and the last bit could decide on a candidate. 2¹⁸ codes cannot overflow 63 bits.
WEIGHT_ONE = 2.0**44


def guide(conditional: Logits, unconditional: Logits, condition_scale: NDArray[np.float32] | float) -> Logits:
    """u + s·(c − u): "super-conditioning". Shapes (…, C); s broadcasts, e.g. (N, 1)."""
    guided: Logits = unconditional + np.asarray(condition_scale, np.float32) * (conditional - unconditional)
    return guided


def filter_logits(logits: Logits, sampling: SamplingParams) -> tuple[NDArray[np.intp], Logits]:
    """One row of guided logits (C,) → the ids that may be drawn, ascending, and their scaled logits.

    `sampling` is resolved (no None). top_k 0 and top_p 1 keep everything; at least one id is kept.
    """
    scaled = logits if sampling.temperature == 1.0 else logits / np.float32(sampling.temperature)
    ids = _top_k(scaled, sampling.top_k or 0)
    if sampling.top_p is not None and sampling.top_p < 1.0:
        ids = _top_p(ids, scaled[ids], sampling.top_p)
    return ids, scaled[ids]


def _top_k(scaled: Logits, k: int) -> NDArray[np.intp]:
    """Exactly k ids, ascending; among equal logits the lowest ids win."""
    if not 0 < k < scaled.shape[0]:
        return np.arange(scaled.shape[0])
    ids: NDArray[np.intp] = np.flatnonzero(scaled >= _lower_bound(scaled, k))
    contenders = scaled[ids]
    threshold = np.partition(contenders, ids.size - k)[ids.size - k]
    kept: NDArray[np.bool_] = contenders > threshold
    kept[np.flatnonzero(contenders == threshold)[: k - np.count_nonzero(kept)]] = True
    survivors: NDArray[np.intp] = ids[kept]
    return survivors


def _lower_bound(scaled: Logits, k: int) -> np.float32:
    """A value that at least k logits reach, and hardly more: the k-th largest of the maxima of blocks.

    Three times quicker than partitioning the whole row, which at 16384 codes would be felt in every step.
    """
    block = max(1, scaled.shape[0] // (4 * k))
    num_blocks = scaled.shape[0] // block
    maxima = scaled[: num_blocks * block].reshape(num_blocks, block).max(axis=1)
    bound: np.float32 = np.partition(maxima, num_blocks - k)[num_blocks - k]
    return bound


def _top_p(ids: NDArray[np.intp], scaled: Logits, p: float) -> NDArray[np.intp]:
    """Keep an id while the probability of those before it is < p: the one that crosses p stays."""
    order = np.argsort(-scaled, kind="stable")  # stable: equal logits by lowest id
    weights = (np.exp(scaled[order].astype(np.float64) - float(scaled[order[0]])) * WEIGHT_ONE).astype(np.int64)
    before = np.cumsum(weights) - weights
    kept = before < np.float64(np.float32(p)) * weights.sum()  # p in float32, as it travels to a GPU
    return np.sort(ids[order[kept]])


def sample(logits: Logits, rows: Sequence[StepRow]) -> NDArray[np.int32]:
    """(N, C) guided logits, one row per image → (N,) ids. A forced row answers its forced id.

    A row whose logits are not all finite answers NAN_TOKEN; its neighbours are unaffected.
    """
    tokens = np.full(len(rows), NAN_TOKEN, np.int32)
    drawn: list[int] = []
    survivors: list[tuple[NDArray[np.intp], Logits]] = []
    for i, row in enumerate(rows):
        if not np.isfinite(logits[i]).all():
            continue
        if row.forced >= 0:
            tokens[i] = row.forced
        else:
            drawn.append(i)
            survivors.append(filter_logits(logits[i], row.sampling))
    if drawn:
        tokens[drawn] = _gumbel_max([rows[i] for i in drawn], survivors)
    return tokens


def _gumbel_max(rows: Sequence[StepRow], survivors: Sequence[tuple[NDArray[np.intp], Logits]]) -> list[int]:
    """One draw per row. The noise of all rows is made in one call: the generator's cost is per call, not per id."""
    sizes = [ids.size for ids, _ in survivors]
    ids = np.concatenate([ids for ids, _ in survivors])
    scores = np.concatenate([scaled for _, scaled in survivors]).astype(np.float64)
    per_row = np.array([(row.position, row.key.index, row.key.seed) for row in rows], np.int64)
    steps, indices, seeds = np.repeat(per_row, sizes, axis=0).T
    scores += gumbel(ids, steps, indices, seeds)
    ends = np.cumsum(sizes)
    return [int(ids[end - size + np.argmax(scores[end - size : end])]) for size, end in zip(sizes, ends, strict=True)]
