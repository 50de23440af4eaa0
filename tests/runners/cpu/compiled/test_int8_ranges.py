"""Pixels with int8 convolutions: close to fp32, or not used; their ranges are measured once and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.compiled.library import load_library
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.vqgan.pixels import CompiledPixels
from dalle_server.engine.runners.cpu.compiled.vqgan.ranges import kept_ranges, random_grids, usable_ranges
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import Ranges
from dalle_server.variants import ModelSize
from tests.runners.cpu.compiled.test_pixels import decoder
from tests.runners.cpu.cpu_runners import RUNNABLE, needs_compiled
from tests.runners.random_checkpoint import random_checkpoint

pytestmark = needs_compiled

TEAM = Team(1)


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return open_checkpoint(find_checkpoint(ModelSize.NANO))


@pytest.fixture(scope="module")
def ranges(nano: Checkpoint) -> Ranges:
    return usable_ranges(load_library(), TEAM, nano.vqgan, nano.config)


def paint(checkpoint: Checkpoint, ranges: Ranges, grid: np.ndarray) -> np.ndarray:
    picture = checkpoint.config.picture
    return decoder(checkpoint, (picture.grid_height, picture.grid_width), ranges=ranges).decode(grid).clip(0, 1).copy()


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def test_every_convolution_of_a_residual_block_has_a_range(nano: Checkpoint, ranges: Ranges) -> None:
    expected = {
        name.removesuffix(".weight")
        for name in nano.vqgan
        if name.startswith("decoder.") and name.endswith(("conv1.weight", "conv2.weight"))
    }
    assert ranges.keys() == expected
    assert all(1 < highest < 100 for highest in ranges.values())


def test_a_trained_model_paints_the_same_picture(nano: Checkpoint, ranges: Ranges) -> None:
    """Of codes that the ranges were not measured with, in patches as a picture has them."""
    picture = nano.config.picture
    patches = np.random.default_rng(1).integers(0, picture.codebook_size, (picture.grid_height // 2,) * 2)
    grid = np.kron(patches, np.ones((2, 2), int)).ravel()
    exact, found = paint(nano, {}, grid), paint(nano, ranges, grid)
    assert psnr_db(found, exact) > 50
    assert not np.array_equal(found, exact), "nothing was computed in int8"


def test_every_build_measures_the_same(nano: Checkpoint, ranges: Ranges) -> None:
    for build in RUNNABLE[:3]:  # the plain build takes half a minute, and test_pixels.py has looked at its bits
        assert usable_ranges(load_library(build), TEAM, nano.vqgan, nano.config) == ranges


def test_an_output_channel_without_weights_stays_at_its_bias() -> None:
    checkpoint = random_checkpoint()
    checkpoint.vqgan["decoder.up.0.block.0.conv1.weight"][3] = 0
    measured = usable_ranges(load_library(), TEAM, checkpoint.vqgan, checkpoint.config, least_psnr_db=20)
    grid = random_grids(checkpoint.vqgan, checkpoint.config)[0]
    assert psnr_db(paint(checkpoint, measured, grid), paint(checkpoint, {}, grid)) > 25


def test_int8_that_could_be_seen_is_not_used(nano: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    assert usable_ranges(load_library(), TEAM, nano.vqgan, nano.config, least_psnr_db=90) == {}
    assert "pixels stay fp32" in caplog.text


def test_codes_that_training_never_moved_are_not_drawn() -> None:
    checkpoint = random_checkpoint()
    checkpoint.vqgan["quantize.embedding.weight"][10:] *= 1e-4
    grids = random_grids(checkpoint.vqgan, checkpoint.config)
    assert grids.shape == (4, 36)
    assert set(grids.ravel()) == set(range(10))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name", ["quantize.embedding", "decoder.conv_in", "decoder.up.0.block.0.norm1", "decoder.up.0.block.0.conv1"]
)
def test_weights_that_are_no_numbers_stay_fp32(name: str, value: float, caplog: pytest.LogCaptureFixture) -> None:
    """Whose pictures then fail one by one, with an error that says so: no reason not to start."""
    checkpoint = random_checkpoint()
    checkpoint.vqgan[f"{name}.weight"].flat[3] = value
    assert usable_ranges(load_library(), TEAM, checkpoint.vqgan, checkpoint.config) == {}
    assert "pixels stay fp32" in caplog.text and "weights are broken" in caplog.text


def test_a_convolution_whose_inputs_are_never_above_zero_stays_fp32() -> None:
    checkpoint = random_checkpoint()
    for part, value in (("weight", 0), ("bias", -1)):
        checkpoint.vqgan[f"decoder.up.0.block.0.norm1.{part}"][:] = value
    measured = usable_ranges(load_library(), TEAM, checkpoint.vqgan, checkpoint.config, least_psnr_db=20)
    assert measured and "decoder.up.0.block.0.conv1" not in measured


def test_ranges_are_measured_once(tmp_path: Path, nano: Checkpoint, ranges: Ranges) -> None:
    assert kept_ranges(tmp_path, nano, lambda: ranges) == ranges
    assert kept_ranges(tmp_path, nano, lambda: pytest.fail("measured again")) == ranges


@pytest.mark.parametrize("content", [["not a mapping"], {"decoder.conv1": 0.0}, {"decoder.conv1": 7.0}])
def test_a_damaged_file_is_measured_again(
    content: object, tmp_path: Path, nano: Checkpoint, ranges: Ranges, caplog: pytest.LogCaptureFixture
) -> None:
    kept_ranges(tmp_path, nano, lambda: ranges)
    (file,) = tmp_path.rglob("ranges.json")
    file.write_text(json.dumps(content), encoding="utf-8")
    assert kept_ranges(tmp_path, nano, lambda: ranges) == ranges
    assert f"{file} is damaged; it is made again" in caplog.text
    assert kept_ranges(tmp_path, nano, lambda: pytest.fail("measured again")) == ranges


def test_pixels_are_int8_where_there_are_ranges(nano: Checkpoint, ranges: Ranges) -> None:
    grid = random_grids(nano.vqgan, nano.config)[0]
    for given in ({}, ranges):
        found = CompiledPixels(load_library(), TEAM, nano, given).decode(grid)
        np.testing.assert_array_equal(found, (paint(nano, given, grid) * 255).astype(np.uint8))
