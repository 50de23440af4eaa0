"""One convolution at a time: exact sums at the edge of what the instructions hold, and the layout of weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dalle_server.engine.runners.cpu.compiled.library import load_library
from dalle_server.engine.runners.cpu.compiled.program import Program
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.vqgan import convolution
from dalle_server.engine.runners.cpu.compiled.vqgan.convolution import AROUND, HERE, Steps
from dalle_server.engine.runners.cpu.compiled.vqgan.feature_maps import LayerWriter
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import VQGANWeights
from tests.runners.cpu.cpu_runners import RUNNABLE, needs_compiled
from tests.runners.random_checkpoint import random_checkpoint

pytestmark = needs_compiled


def int8_sums(build: str, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(height, width, O) sums of what an int8 convolution makes of uint8 `values` (height, width, I)."""
    library = load_library(build)
    height, width, channels = values.shape
    layers = LayerWriter(library, VQGANWeights({}, random_checkpoint().config.vqgan, {}, 0))
    made = convolution.int8(
        weight.reshape(*weight.shape[:2], -1), np.zeros(len(weight)), AROUND, Steps(1.0, 0), library.lowered()
    )
    x = layers.new(height, width, channels)
    framed = layers._framed(x, Steps(1.0, 0))
    y = layers._framed_convolution(x, made, framed)
    x.array()[:] = values
    Program(library, Team(2), layers.operations, layers.kept).run()
    return y.array() / made.scale[: len(weight)]


@pytest.mark.parametrize("build", RUNNABLE)
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_at_the_edge_are_exact(build: str, sign: int) -> None:
    """The largest inputs against weights as large as two neighbours may be, all of one sign."""
    weight = np.zeros((5, 32, 3, 3), np.float32)
    weight[0], weight[1, ::2], weight[2, 1::2], weight[3, :16] = 63.5, 127, 127, 63.5
    weight[4] = np.where(np.arange(32) % 4 < 2, 63.5, -63.5)[:, None, None]
    found = int8_sums(build, np.full((5, 6, 32), 255), sign * weight)
    rounded = np.rint(sign * weight)
    expected = F.conv2d(torch.full((1, 32, 5, 6), 255.0).double(), torch.tensor(rounded).double(), padding=1)
    np.testing.assert_array_equal(found, expected[0].permute(1, 2, 0))


@pytest.mark.parametrize("build", RUNNABLE)
def test_sums_of_any_numbers_are_exact(build: str) -> None:
    generator = np.random.default_rng(1)
    values, weight = (
        generator.integers(0, 256, (7, 9, 20)),
        generator.integers(-63, 64, (33, 20, 3, 3)).astype(np.float32),
    )
    weight[:, 0, 0, 0], weight[:, 1, 0, 0] = 64, 63  # so that the scale is 1
    found = int8_sums(build, values, weight)
    images = torch.tensor(values).permute(2, 0, 1).unsqueeze(0).double()
    expected = F.conv2d(images, torch.tensor(weight).double(), padding=1)[0].permute(1, 2, 0)
    np.testing.assert_array_equal(found, expected)


def test_neighbours_fit_together() -> None:
    """255 · (|a| + |b|) must fit in an int16, whatever the weights are."""
    weight = np.random.default_rng(2).standard_normal((40, 50, 9)).astype(np.float32)
    weight[3] = 0
    made = convolution.int8(weight, np.zeros(40), AROUND, Steps(0.1, 20), 0)
    pairs = np.abs(made.weights.astype(int)).reshape(*made.weights.shape[:3], 16, 2, 2).sum(axis=-1)
    assert 126 <= pairs.max() <= 128
    assert made.scale is not None and made.scale[3] == 0


def test_steps_have_zero_among_them() -> None:
    for highest in (0.5, 3.0, 40.0):
        steps = Steps.of_swish(highest)
        assert 0 < steps.zero < 255
        assert steps.step * (255 - steps.zero) == pytest.approx(highest)
        assert -steps.step * steps.zero <= -0.2785


def test_doubling_and_convolving_are_four_convolutions() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((5, 3, 3, 3)).astype(np.float32)
    picture = torch.tensor(generator.standard_normal((1, 3, 6, 7)).astype(np.float32))
    expected = F.conv2d(F.interpolate(picture, scale_factor=2.0, mode="nearest"), torch.tensor(weight), padding=1)
    framed, found = F.pad(picture, (1, 1, 1, 1)).numpy()[0], np.zeros((5, 12, 14))
    for index, part in enumerate(convolution.doubled(weight, np.zeros(5))):
        tiles = part.weights[0, :, :3, :5]  # (taps, I, O)
        terms = [
            np.einsum("io,ihw->ohw", tile, framed[:, row : row + 6, column : column + 7])
            for tile, (row, column) in zip(tiles, part.taps, strict=True)
        ]
        found[:, index // 2 :: 2, index % 2 :: 2] = sum(terms)
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-5)


def test_outputs_and_inputs_fill_whole_tiles() -> None:
    made = convolution.exact(np.ones((17, 3, 1), np.float32), np.ones(17), HERE)
    assert made.weights.shape == (2, 1, 16, 16)
    assert made.weights.sum() == 17 * 3
    assert made.bias.tolist() == [1.0] * 17 + [0.0] * 15
