"""Does this machine give a picture the same bits in any company? Asked at start, so that it need not be hoped.

A step is padded to a row bucket, and a matrix product may sum in another order for another number of rows.
Each bucket computes the same picture in other company; where a single bit of the logits differs, one bucket
is pinned for good and every step is padded to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.base import Runner, StepRow, TextTokens
from dalle_server.errors import CheckpointError
from dalle_server.generation import ImageKey

NUM_STEPS = 3
SEED = 20210721


def check_row_buckets(runner: Runner) -> str:
    """Compare the buckets, pin one if they differ, and say so in a line. Raises CheckpointError for NaN logits."""
    texts = [runner.encode([text])[0] for text in _texts(runner)]
    reference = _logits_in_company(runner, texts, runner.row_buckets[0])
    if not np.isfinite(reference).all():
        raise CheckpointError("the model's logits are not finite: the weights are broken or their dtype is too narrow")
    unequal = [
        bucket
        for bucket in runner.row_buckets
        if not np.array_equal(reference, _logits_in_company(runner, texts, bucket))
    ]
    listed = ", ".join(map(str, runner.row_buckets))
    if not unequal:
        return f"steps of {listed} images agree bit for bit on this machine"
    largest = runner.row_buckets[-1]
    runner.pin_bucket(largest)
    return f"steps of {listed} images differ in their bits on this machine, so every step is padded to {largest}"


def _texts(runner: Runner) -> Sequence[TextTokens]:
    """Two texts of different length, of ids that every encoder has."""
    config = runner.config.transformer
    ids = np.random.default_rng(SEED).integers(0, config.encoder_vocab_size, config.max_text_length, dtype=np.int32)
    return [TextTokens(ids, min(17, config.max_text_length)), TextTokens(ids[::-1].copy(), 2)]


def _logits_in_company(runner: Runner, texts: Sequence[Any], bucket: int) -> NDArray[np.float32]:
    """(NUM_STEPS, C) logits of one picture while bucket − 1 others, one position behind, fill the batch.

    `texts` are two results of the runner's encode.
    """
    num_images = min(bucket, runner.num_slots)
    conditional, unconditional = texts
    subject, others = num_images - 1, range(num_images - 1)  # its slot differs from bucket to bucket
    for slot in others:
        runner.admit(slot, unconditional, conditional)
    runner.admit(subject, conditional, unconditional)
    sampling = runner.config.sampling
    logits = []
    for position in range(NUM_STEPS):
        rows = [StepRow(slot, position - 1, ImageKey(slot), sampling) for slot in others] if position else []
        rows.append(StepRow(subject, position, ImageKey(SEED), sampling))
        runner.step(rows).result()
        logits.append(runner.guided_logits()[-1].copy())
    return np.stack(logits)
