"""Sampling on the device says what engine/sampling.py says on the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dalle_server.engine import rng, sampling
from dalle_server.engine.runners.base import NAN_TOKEN, StepRow
from dalle_server.engine.runners.torch import sampling as torch_sampling
from dalle_server.engine.runners.torch.inputs import NARROW, StepInputs
from dalle_server.request import MAX_SEED, ImageKey, SamplingParams

SETTINGS = [
    SamplingParams(temperature=1.0, top_k=50, top_p=1.0, condition_scale=10.0),
    SamplingParams(temperature=0.7, top_k=0, top_p=0.9, condition_scale=3.0),
    SamplingParams(temperature=2.5, top_k=300, top_p=0.5, condition_scale=3.0),
    SamplingParams(temperature=1.0, top_k=0, top_p=1.0, condition_scale=1.0),
    SamplingParams(temperature=1.0, top_k=1, top_p=1.0, condition_scale=1.0),
    SamplingParams(temperature=1.0, top_k=5, top_p=1e-6, condition_scale=1.0),
    SamplingParams(temperature=1.0, top_k=2**31 - 1, top_p=0.999, condition_scale=1.0),
]


def rows_at(position: int, seed: int) -> list[StepRow]:
    return [
        StepRow(slot, position, ImageKey(seed + 7919 * slot, slot), settings) for slot, settings in enumerate(SETTINGS)
    ]


def on_both(logits: np.ndarray, rows: list[StepRow]) -> tuple[np.ndarray, np.ndarray]:
    inputs = StepInputs.pack(rows, np.array([row.position for row in rows]))
    return sampling.sample(logits, rows), torch_sampling.sample(torch.from_numpy(logits), inputs).numpy()


@pytest.mark.parametrize("codebook_size", [5, 1000, 16384])
def test_draws_the_same_tokens(codebook_size):
    generator = np.random.default_rng(codebook_size)
    for position in range(20):
        logits = generator.normal(0, 3, (len(SETTINGS), codebook_size)).astype(np.float32)
        host, device = on_both(logits, rows_at(position, seed=2**40 + position))
        np.testing.assert_array_equal(device, host)


def test_keeps_the_same_candidates_among_ties():
    generator = np.random.default_rng(0)
    logits = generator.integers(-4, 5, (len(SETTINGS), 400)).astype(np.float32)
    inputs = StepInputs.pack(rows_at(0, 0), np.zeros(len(SETTINGS), np.int64))
    _, ids, kept = torch_sampling.filter_logits(
        torch.from_numpy(logits), inputs.temperature, inputs.top_k, inputs.top_p
    )
    for row, settings in enumerate(SETTINGS):
        expected, _ = sampling.filter_logits(logits[row], settings)
        np.testing.assert_array_equal(ids[row][kept[row]].sort().values.numpy(), expected)


@pytest.mark.parametrize("top_p", [0.1, 0.2, 0.25, 0.3, 0.45, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("codebook_size", [4, 5, 10, 20, 700])
def test_keeps_the_same_candidates_where_a_sum_of_equals_meets_top_p(codebook_size, top_p):
    settings = SamplingParams(temperature=1.0, top_k=0, top_p=top_p, condition_scale=1.0)
    logits = np.full((1, codebook_size), 1.7, np.float32)
    inputs = StepInputs.pack([StepRow(0, 0, ImageKey(1), settings)], np.zeros(1, np.int64))
    _, ids, kept = torch_sampling.filter_logits(
        torch.from_numpy(logits), inputs.temperature, inputs.top_k, inputs.top_p
    )
    np.testing.assert_array_equal(ids[kept].numpy(), sampling.filter_logits(logits[0], settings)[0])


def test_noise_agrees_to_the_last_bits_of_a_logarithm():
    seeds, steps, indices = np.array([0, MAX_SEED]), np.array([0, 255]), np.array([0, 15])
    ids = np.broadcast_to(np.arange(16384), (2, 16384))
    expected = rng.gumbel(ids, steps[:, None], indices[:, None], seeds[:, None])
    actual = torch_sampling.gumbel(*(torch.from_numpy(np.array(a)) for a in (ids, steps, indices, seeds)))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-15)


def test_forced_and_broken_rows():
    logits = np.zeros((3, 8), np.float32)
    logits[1, 3], logits[2, 0] = np.nan, np.inf
    plain = SETTINGS[0]
    rows = [StepRow(0, 0, ImageKey(1), plain, forced=6), StepRow(1, 0, ImageKey(1), plain, forced=6)]
    rows.append(StepRow(2, 0, ImageKey(1), plain))
    host, device = on_both(logits, rows)
    assert device.tolist() == host.tolist() == [6, NAN_TOKEN, NAN_TOKEN]


def test_probabilities_are_the_hosts_to_the_last_bit():
    x = -np.random.default_rng(1).uniform(0, 60, (4, 500))
    assert (sampling.exponential(torch.from_numpy(x)).numpy() == sampling.exponential(x)).all()


NARROW_SETTINGS = [
    SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, condition_scale=1.0)
    for temperature, top_k, top_p in [
        (1.0, 50, 1.0),
        (0.7, NARROW, 0.9),
        (2.5, 256, 0.5),
        (1.0, 1, 1.0),
        (1.0, 5, 1e-6),
    ]
]


@pytest.mark.parametrize("codebook_size", [5, NARROW - 1, NARROW, NARROW + 1, 16384])
@pytest.mark.parametrize("kind", ["spread", "ties", "zeros", "one is no number"])
def test_few_candidates_are_the_first_of_all(codebook_size: int, kind: str) -> None:
    """Where every picture of a step keeps at most NARROW, the codebook is not sorted: the tokens are the same."""
    generator = np.random.default_rng(codebook_size)
    for position in range(10):
        logits = generator.normal(0, 3, (len(NARROW_SETTINGS), codebook_size)).astype(np.float32)
        if kind == "ties":
            logits = np.round(logits)  # some hundreds stand at the border of top_k; -0.0 among them
        elif kind == "zeros":
            logits = np.where(logits > 0, np.float32(0.0), np.float32(-0.0))
        elif kind == "one is no number":
            logits[2, 3] = np.nan
        rows = [StepRow(slot, position, ImageKey(7 + slot, slot), each) for slot, each in enumerate(NARROW_SETTINGS)]
        inputs = StepInputs.pack(rows, np.full(len(rows), position))
        assert inputs.is_narrow and inputs.at_guidance_1().is_narrow
        host, device = on_both(logits, rows)
        np.testing.assert_array_equal(device, host)
        whole = torch_sampling.sample(torch.from_numpy(logits), replace(inputs, is_narrow=False))
        np.testing.assert_array_equal(device, whole.numpy())


def test_one_picture_that_keeps_everything_makes_the_step_a_wide_one() -> None:
    rows = [StepRow(0, 0, ImageKey(1, 0), NARROW_SETTINGS[0])]
    for top_k in (0, None, NARROW + 1):
        wide = StepRow(
            1, 0, ImageKey(1, 0), SamplingParams(temperature=1.0, top_k=top_k, top_p=1.0, condition_scale=1.0)
        )
        assert not StepInputs.pack([*rows, wide], np.zeros(2, np.int64)).is_narrow
