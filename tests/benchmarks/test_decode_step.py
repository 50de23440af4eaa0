"""The limit that a decode step is compared with counts every weight that a step reads, once."""

from __future__ import annotations

from benchmarks.decode_step import reader, step_bytes
from tests.runners.random_checkpoint import START, random_checkpoint


def test_a_step_reads_the_decoders_matrices_once() -> None:
    checkpoint = random_checkpoint(d_model=96, ffn_dim=130)
    layer = 4 * 96 * 96 + 2 * 96 * 96 + 3 * 96 * 130  # self-attention; cross-attention's query and output; GLU
    weights = 2 * layer + START * 96
    assert step_bytes(checkpoint, "fp32") == 4 * weights
    assert step_bytes(checkpoint, "bf16") == 2 * weights


def test_int8_counts_scales_and_padding() -> None:
    checkpoint = random_checkpoint(d_model=96, ffn_dim=130)
    narrow, wide = 2 * (64 + 4), 3 * (64 + 4)  # bytes of a row of 96 and of 130 inputs: groups of 64 and a scale each
    layer = (4 * 96 + 2 * 96 + 2 * 130) * narrow + 96 * wide
    assert step_bytes(checkpoint, "int8") == 2 * layer + START * narrow


def test_the_reader_takes_longer_for_more() -> None:
    small, large = reader(1 << 16, 1), reader(1 << 26, 1)
    assert min(small() for _ in range(5)) < min(large() for _ in range(5))
