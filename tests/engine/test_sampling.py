"""The filters are dalle-mini's, to the last kept id; the draw is a row's own business, and its noise is Gumbel."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dalle_server.engine.rng import gumbel, philox4x32
from dalle_server.engine.runners.base import NAN_TOKEN, StepRow
from dalle_server.engine.sampling import _NOISE_RANGE, exponential, filter_logits, guide, sample
from dalle_server.request import ImageKey, SamplingParams

PARITY = Path(__file__).parents[1] / "data" / "parity"
KEEP_ALL = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, condition_scale=1.0)

# The settings behind each `filtered_NAME` of goldens_fp32.npz: (top_k, top_p, temperature).
FP32_SETTINGS = {
    "default": (50, 1.0, 1.0),
    "k1": (1, 1.0, 1.0),
    "k5_t07": (5, 1.0, 0.7),
    "p09": (0, 0.9, 1.0),
    "k20_p08_t13": (20, 0.8, 1.3),
    "t05": (0, 1.0, 0.5),
    "p05_t20": (0, 0.5, 2.0),
    "kbig": (10**6, 1.0, 1.0),
}


def goldens():
    """(id, logits, expected, sampling) of every filter golden; −inf in `expected` means removed."""
    for model in ("tiny-mega", "tiny-mini"):
        fp32 = np.load(PARITY / model / "goldens_fp32.npz")
        for name, (k, p, t) in FP32_SETTINGS.items():
            sampling = SamplingParams(temperature=t, top_k=k, top_p=p, condition_scale=1.0)
            yield f"{model}-{name}", fp32["supercond_logits"], fp32[f"filtered_{name}"], sampling
            if f"filtered_{name}_cut" in fp32:
                cut = fp32[f"filtered_{name}_cut"]
                yield f"{model}-{name}-cut", fp32["supercond_logits"][..., : cut.shape[-1]], cut, sampling
        filters = np.load(PARITY / model / "goldens_filters.npz")
        for name in (key.removeprefix("settings_") for key in filters if key.startswith("settings_")):
            k, p, t = (float(x) for x in filters[f"settings_{name}"])  # type: ignore[assignment]
            sampling = SamplingParams(temperature=t, top_k=int(k), top_p=p, condition_scale=1.0)
            yield f"{model}-plain-{name}", filters["logits"], filters[f"filtered_{name}"], sampling


GOLDENS = list(goldens())


@pytest.mark.parametrize(("logits", "expected", "sampling"), [g[1:] for g in GOLDENS], ids=[g[0] for g in GOLDENS])
def test_filters_equal_the_reference(logits, expected, sampling):
    size = logits.shape[-1]
    for row, wanted in zip(logits.reshape(-1, size), expected.reshape(-1, size), strict=True):
        ids, scaled = filter_logits(row, sampling)
        np.testing.assert_array_equal(ids, np.flatnonzero(np.isfinite(wanted)))
        np.testing.assert_allclose(scaled, wanted[ids], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", ["tiny-mega", "tiny-mini"])
def test_guidance_equals_the_reference(model):
    z = np.load(PARITY / model / "goldens_fp32.npz")
    guided = guide(z["decoder_logits"], z["decoder_logits_uncond"], float(z["condition_scale"]))
    np.testing.assert_allclose(guided, z["supercond_logits"], atol=2e-4)


def test_top_k_keeps_exactly_k_and_the_lowest_ids_of_a_tie():
    logits = np.array([1, 3, 2, 3, 3, 0], np.float32)
    for k, kept in [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [1, 2, 3, 4]), (0, range(6)), (6, range(6))]:
        sampling = SamplingParams(temperature=1.0, top_k=k, top_p=1.0, condition_scale=1.0)
        assert filter_logits(logits, sampling)[0].tolist() == list(kept)


@pytest.mark.parametrize("size", [7, 128, 1000, 4099])
@pytest.mark.parametrize("num_values", [1, 5, 10**6])
def test_top_k_equals_a_full_sort(size, num_values):
    rng = np.random.default_rng(size)
    for k in {1, 2, 5, 50, size // 3, size - 1, size, size + 1}:
        logits = rng.integers(0, num_values, size).astype(np.float32)
        expected = sorted(np.argsort(-logits, kind="stable")[:k].tolist())
        sampling = SamplingParams(temperature=1.0, top_k=k, top_p=1.0, condition_scale=1.0)
        assert filter_logits(logits, sampling)[0].tolist() == expected


def test_top_p_keeps_the_crossing_token_and_at_least_one():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    for p, kept in [(0.4, [0]), (0.6, [0, 1]), (0.79, [0, 1]), (0.9, [0, 1, 2]), (1e-6, [0])]:
        sampling = SamplingParams(temperature=1.0, top_k=0, top_p=p, condition_scale=1.0)
        assert filter_logits(logits, sampling)[0].tolist() == kept


def rows_of(num_rows: int, sampling: SamplingParams = KEEP_ALL, **changes: Any) -> list[StepRow]:
    return [StepRow(slot=i, position=3, key=ImageKey(i, i % 3), sampling=sampling, **changes) for i in range(num_rows)]


def test_a_row_draws_the_same_alone_and_in_company():
    logits = np.random.default_rng(1).normal(size=(40, 64)).astype(np.float32)
    mixed = [
        SamplingParams(temperature=0.5 + i / 20, top_k=(i * 7) % 64, top_p=1 - i / 50, condition_scale=1.0)
        for i in range(40)
    ]
    rows = [StepRow(i, i, ImageKey(i * 2**33, i), params) for i, params in enumerate(mixed)]
    together = sample(logits, rows)
    alone = [int(sample(logits[i : i + 1], rows[i : i + 1])[0]) for i in range(40)]
    assert together.tolist() == alone


def test_draws_follow_the_filtered_distribution():
    logits = np.tile(np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32)), (20_000, 1))
    sampling = SamplingParams(temperature=1.0, top_k=3, top_p=1.0, condition_scale=1.0)
    shares = np.bincount(sample(logits, rows_of(20_000, sampling)), minlength=4) / 20_000
    np.testing.assert_allclose(shares, [0, 2 / 9, 3 / 9, 4 / 9], atol=0.012)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_itself_alone(poison):
    logits = np.random.default_rng(2).normal(size=(3, 16)).astype(np.float32)
    expected = sample(logits, rows_of(3))
    logits[1, 5] = poison
    assert sample(logits, rows_of(3)).tolist() == [expected[0], NAN_TOKEN, expected[2]]
    assert sample(logits, rows_of(3, forced=4)).tolist() == [4, NAN_TOKEN, 4]


def test_forced_rows_answer_what_they_were_given():
    logits = np.zeros((2, 16), np.float32)
    rows = [StepRow(0, 0, ImageKey(1), KEEP_ALL, forced=0), StepRow(1, 0, ImageKey(1), KEEP_ALL, forced=15)]
    assert sample(logits, rows).tolist() == [0, 15]


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 20.0])
def test_the_draw_is_the_best_of_all_ids(spread):
    """Candidates are left out, and rows drawn a few at a time, but only where that changes nothing."""
    logits = (spread * np.random.default_rng(1).standard_normal((5, 6000))).astype(np.float32)
    rows = [StepRow(n, 9, ImageKey(11, n), KEEP_ALL) for n in range(5)]
    scores = [row + gumbel(np.arange(6000), 9, n, 11) for n, row in enumerate(logits.astype(np.float64))]
    assert sample(logits, rows).tolist() == np.argmax(scores, axis=1).tolist()


@pytest.mark.parametrize("spread", [0.5, 5.0, 30.0])
def test_top_p_is_not_changed_by_leaving_out_what_weighs_nothing(spread):
    logits = (spread * np.random.default_rng(2).standard_normal(6000)).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(logits[order].astype(np.float64) - logits.max())
    before = (np.cumsum(probabilities) - probabilities) / probabilities.sum()
    for p in (0.1, 0.9, 0.999):
        sampling = SamplingParams(temperature=1.0, top_k=0, top_p=p, condition_scale=1.0)
        assert filter_logits(logits, sampling)[0].tolist() == sorted(order[before < p].tolist())


def test_what_is_left_out_could_not_have_won():
    """Whatever the noise: from the least to the greatest of gumbel()'s."""
    least, greatest = -np.log(-np.log((np.array([0, 2**32 - 1]) + 0.5) * 2.0**-32))
    assert greatest - least <= _NOISE_RANGE


EXPONENTIALS = {
    0.0: "0x1.0000000000000p+0",
    -0.3: "0x1.7b4c869c37c07p-1",
    -1.0: "0x1.78b56362cef46p-2",
    -7.7: "0x1.dad2df0f50379p-12",
    -39.9: "0x1.5a7104ddea02cp-58",
}


def test_the_exponential_behind_top_p_is_the_same_number_on_every_machine():
    """A library's own differs in the last bit between CPUs, and with it, now and then, who crosses top_p."""
    x = np.array([*EXPONENTIALS])
    assert [value.hex() for value in exponential(x).tolist()] == [*EXPONENTIALS.values()]
    many = -np.random.default_rng(0).uniform(0, 40, 10_000)
    assert np.abs(exponential(many) / np.exp(many) - 1).max() < 2.0**-45
    assert exponential(np.array([-1e9, -np.inf])).max() < 2.0**-44


# -- the noise: published numbers, the same on numpy and torch

# Random123's kat_vectors, "philox4x32 10": counter, key → output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    c0, c1, c2, c3 = (np.array([c]) for c in counter)
    k0, k1 = (np.array([k]) for k in key)
    words = philox4x32((c0, c1, c2, c3), (k0, k1))
    assert tuple(int(word[0]) for word in words) == expected


def test_torch_tensors_go_through_the_same_code():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    counter = tuple(rng.integers(0, 2**32, 1000) for _ in range(4))
    key = tuple(rng.integers(0, 2**32, 1000) for _ in range(2))
    ours = philox4x32(counter, key)  # type: ignore[arg-type]
    theirs = philox4x32(tuple(map(torch.from_numpy, counter)), tuple(map(torch.from_numpy, key)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_every_part_of_the_name_changes_the_noise():
    base = gumbel(5, 7, 1, 2**40 + 3)
    for other in (gumbel(6, 7, 1, 2**40 + 3), gumbel(5, 8, 1, 2**40 + 3), gumbel(5, 7, 2, 2**40 + 3)):
        assert base != other
    assert base != gumbel(5, 7, 1, 2**41 + 3), "the seed's high word counts"
    assert base == gumbel([4, 5], 7, 1, 2**40 + 3)[1], "company does not"


def test_noise_is_standard_gumbel():
    noise = gumbel(np.arange(200_000), 0, 0, 42)
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_draws_follow_the_softmax():
    logits = np.array([0.0, 1.0, 2.0])
    noise = gumbel(np.arange(3)[None, :], np.arange(50_000)[:, None], 0, 7)
    shares = np.bincount((logits + noise).argmax(axis=1), minlength=3) / 50_000
    np.testing.assert_allclose(shares, np.exp(logits) / np.exp(logits).sum(), atol=0.01)
