"""From logits to a token: guide → temperature → top_k → top_p → Gumbel-max, in numpy.

The order and the ties are those of dalle-mini's generate(); the noise is ours (rng.py), so that a token
depends on its own logits and its own (seed, image index, step) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.rng import Words, gumbel
from dalle_server.engine.runners.base import NAN_TOKEN, StepRow
from dalle_server.request import SamplingParams

Logits = NDArray[np.float32]
Survivors = tuple[NDArray[np.intp], Logits]  # ids that may be drawn, ascending, and their scaled logits
Draw = Callable[[Sequence[StepRow], Sequence[Survivors]], list[int]]

# Probabilities are rounded to whole multiples of 2⁻⁴⁴ of the largest before they are summed: whole numbers have one
# sum in any order. A GPU adds floats in an order that may change from call to call, and the last bit could let a
# candidate in or out. The sum of 2¹⁸ codes fits 63 bits.
WEIGHT_ONE = 2.0**44
_NO_WEIGHT = 32.0  # e^−32 · 2⁴⁴ rounds down to nothing

# The largest noise minus the smallest, −log(−log u) at both ends of u: a logit further behind can never win.
_NOISE_RANGE = 26.01
_IDS_A_CALL = 4096  # noise is made for this many candidates at a time: what fits in the cache


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
    weighty = scaled >= scaled.max() - _NO_WEIGHT  # the others would come last and weigh nothing
    ids, scaled = ids[weighty], scaled[weighty]
    order = np.argsort(-scaled, kind="stable")  # stable: equal logits by lowest id
    weights = (exponential(scaled[order].astype(np.float64) - float(scaled[order[0]])) * WEIGHT_ONE).astype(np.int64)
    before = np.cumsum(weights) - weights
    kept = before < np.float64(np.float32(p)) * weights.sum()  # p in float32, as it travels to a GPU
    return np.sort(ids[order[kept]])


def exponential(x: Words) -> Words:
    """e^x within 2⁻⁴⁵ of itself for −40 ≤ x ≤ 0, and e^−40 below; float64, a numpy array or a torch tensor.

    A library's exponential may differ in its last bit on the next machine. Sums and products do not: e^(x/64) by its
    series, squared six times.
    """
    part, series = x.clip(-40.0, 0.0) / 64, 1.0
    for n in range(16, 0, -1):
        series = series * part / n + 1.0
    for _ in range(6):
        series = series * series
    return series


def gumbel_max(rows: Sequence[StepRow], survivors: Sequence[Survivors]) -> list[int]:
    """argmax(logit + noise) of each row."""
    contenders = [_contenders(*survivor) for survivor in survivors]
    winners: list[int] = []
    while len(winners) < len(rows):
        batch = slice(len(winners), _end_of_batch(contenders, len(winners)))
        winners += _drawn_together(rows[batch], contenders[batch])
    return winners


def _contenders(ids: NDArray[np.intp], scaled: Logits) -> Survivors:
    """Without those that no noise could bring to the front: most of a codebook."""
    kept = scaled >= scaled.max() - np.float32(_NOISE_RANGE)
    return ids[kept], scaled[kept]


def _end_of_batch(survivors: Sequence[Survivors], start: int) -> int:
    """As many rows as keep to _IDS_A_CALL, one at least."""
    size, end = 0, start
    while end < len(survivors) and (end == start or size + survivors[end][0].size <= _IDS_A_CALL):
        size += survivors[end][0].size
        end += 1
    return end


def _drawn_together(rows: Sequence[StepRow], survivors: Sequence[Survivors]) -> list[int]:
    """One call makes the noise of all rows: for a few candidates its cost is per call, not per id."""
    sizes = [ids.size for ids, _ in survivors]
    ids = np.concatenate([ids for ids, _ in survivors])
    scores = np.concatenate([scaled for _, scaled in survivors]).astype(np.float64)
    steps, indices, seeds = (
        np.repeat(np.array(values, np.int64), sizes)
        for values in zip(*((row.position, row.key.index, row.key.seed) for row in rows), strict=True)
    )
    scores += gumbel(ids, steps, indices, seeds)
    ends = np.cumsum(sizes)
    return [int(ids[end - size + np.argmax(scores[end - size : end])]) for size, end in zip(sizes, ends, strict=True)]


def sample(logits: Logits, rows: Sequence[StepRow], draw: Draw = gumbel_max) -> NDArray[np.int32]:
    """(N, C) guided logits, one row per image → (N,) ids. A forced row answers its forced id.

    `draw` picks among what the filters leave, as `gumbel_max` (the default) does. A row whose logits are not all finite
    answers NAN_TOKEN; its neighbours are unaffected.
    """
    tokens = np.full(len(rows), NAN_TOKEN, np.int32)
    drawn: list[int] = []
    survivors: list[Survivors] = []
    for i, row in enumerate(rows):
        if not np.isfinite(logits[i]).all():
            continue
        if row.forced >= 0:
            tokens[i] = row.forced
        else:
            drawn.append(i)
            survivors.append(filter_logits(logits[i], row.sampling))
    if drawn:
        tokens[drawn] = draw([rows[i] for i in drawn], survivors)
    return tokens


def log_probabilities(conditional: Logits, guided: Logits, sampling: SamplingParams, token: int) -> tuple[float, float]:
    """How likely `token` was, (C,) logits each: over the whole codebook at temperature 1 and guidance 1, and under
    `sampling`. Natural logarithms in float64; NaN where logits are not finite.
    """
    if token < 0 or not (np.isfinite(conditional).all() and np.isfinite(guided).all()):
        return math.nan, math.nan
    ids, scaled = filter_logits(guided, sampling)
    place = int(np.searchsorted(ids, token))
    is_kept = place < len(ids) and ids[place] == token
    return _log_softmax(conditional, token), _log_softmax(scaled, place) if is_kept else -math.inf


def _log_softmax(logits: Logits, index: int) -> float:
    exact = logits.astype(np.float64) - logits.max()
    return float(exact[index] - np.log(np.exp(exact).sum()))
