"""The generator gives the published numbers, the same on numpy and torch, and its noise is Gumbel."""

import math

import numpy as np
import pytest

from dalle_server.engine.rng import gumbel, philox4x32

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
