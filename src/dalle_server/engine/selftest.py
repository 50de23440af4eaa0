"""Does this machine give a picture the same bits in any company? Asked at start, so that it need not be hoped.

A step is padded to a row bucket, and a matrix product may sum in another order for another number of rows.
Each bucket computes the same picture in other company. Small buckets whose logits differ by a single bit from
the larger ones' are not used: their steps are padded. In the worst case one bucket is left.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.base import Runner, StepRow, TextTokens
from dalle_server.errors import CheckpointError, ConfigError
from dalle_server.request import ImageKey

NUM_STEPS = 3
SEED = 20210721

logger = logging.getLogger(__name__)


def check_determinism(runner: Runner) -> str:
    """Compare the row buckets, keep those that agree, and say in a line what holds from now on.

    Raises CheckpointError when the logits are not finite, ConfigError when a full batch does not fit in memory.
    """
    try:
        verdict = _verdict(runner)
    except MemoryError as error:
        raise ConfigError(f"{runner.num_slots} pictures at a time do not fit in memory; lower num_slots") from error
    logger.log(logging.INFO if verdict.startswith("exact") else logging.WARNING, "determinism %s", verdict)
    return verdict


def _verdict(runner: Runner) -> str:
    texts = [runner.encode([text])[0] for text in _texts(runner)]
    buckets = sorted({min(bucket, runner.num_slots) for bucket in runner.row_buckets})  # as far as slots can fill them
    logits = {bucket: _logits(runner, texts, bucket) for bucket in buckets}
    largest = buckets[-1]
    if not np.isfinite(logits[largest]).all():
        raise CheckpointError("the model's logits are not finite: the weights are broken or their dtype is too narrow")
    disagreeing = [bucket for bucket in buckets if not _same_bits(logits[bucket], logits[largest])]
    kept = [bucket for bucket in buckets if bucket > max(disagreeing, default=0)]
    runner.drop_buckets_below(kept[0])
    # With a picture alone, padded to the smallest bucket that is left: is that all there was?
    alone = [_same_bits(_logits(runner, texts, 1), logits[largest]) for _ in range(2)]
    agree = f"steps of {_listed(kept)} images agree bit for bit on this machine"
    if not all(alone):
        return f"approximate: {agree}, but a picture still depends on its company in the last bits"
    if disagreeing:
        return f"exact: {agree}; smaller ones do not, and are padded to {kept[0]}"
    if runner.info.build:
        return f"exact: {agree}, and the tokens of a seed are the same on every CPU (build {runner.info.build} here)"
    return f"exact: {agree}"


def _listed(numbers: list[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))


def _same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.tobytes() == b.tobytes()


def _texts(runner: Runner) -> list[TextTokens]:
    """Two texts of different length, of ids that the encoder has."""
    text = runner.config.text
    ids = np.random.default_rng(SEED).integers(0, text.vocab_size, text.max_length, dtype=np.int32)
    return [TextTokens(ids, min(17, text.max_length)), TextTokens(ids[::-1].copy(), 2)]


def _logits(runner: Runner, texts: list[Any], num_images: int) -> NDArray[np.float32]:
    """(NUM_STEPS, C) logits of one picture among `num_images`; the others swap its texts, are a token ahead, and every
    other one is not guided.

    Its slot is the last of them, so that it moves from bucket to bucket.
    """
    subject, others = num_images - 1, range(num_images - 1)
    for slot in others:
        runner.admit(slot, texts[1], texts[0])
    runner.admit(subject, texts[0], texts[1])
    if others:
        runner.step([_row(runner, slot, 0, guided=slot % 2 == 0) for slot in others]).result()
    logits = []
    for position in range(NUM_STEPS):
        company = [_row(runner, slot, position + 1, guided=slot % 2 == 0) for slot in others]
        runner.step([*company, _row(runner, subject, position, guided=True)]).result()
        logits.append(runner.guided_logits()[-1].copy())
    return np.stack(logits)


def _row(runner: Runner, slot: int, position: int, *, guided: bool) -> StepRow:
    """Forced tokens: a difference in the last bit must not grow into another token before it is seen."""
    token = (7 * position + 3) % runner.config.picture.codebook_size
    sampling = replace(runner.config.sampling, condition_scale=2.0 if guided else 1.0)
    return StepRow(slot, position, ImageKey(SEED), sampling, forced=token)
