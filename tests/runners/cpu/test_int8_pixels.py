"""Pixels with int8 convolutions: close to bf16, or not used; their ranges are measured once and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu import load as cpu_load
from dalle_server.engine.runners.cpu.load import load_cpu_runner
from dalle_server.engine.runners.cpu.openvino import pixels as openvino_pixels
from dalle_server.engine.runners.cpu.openvino import ranges as openvino_ranges
from dalle_server.engine.runners.cpu.openvino.compile import Compiler
from dalle_server.engine.runners.cpu.openvino.ranges import kept_ranges, random_grids, usable_ranges
from dalle_server.engine.runners.cpu.openvino.vqgan import build_decoder
from dalle_server.engine.runners.cpu.openvino.vqgan_int8 import Int8Layers, Ranges
from dalle_server.engine.runners.cpu.openvino.vqgan_layers import Layers
from dalle_server.errors import CheckpointError
from dalle_server.variants import ModelSize
from tests.runners.cpu.cpu_runners import needs_bf16
from tests.runners.cpu.test_pixels import BF16, F32
from tests.runners.random_checkpoint import random_checkpoint

pytestmark = needs_bf16


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return open_checkpoint(find_checkpoint(ModelSize.NANO))


@pytest.fixture(scope="module")
def ranges(nano: Checkpoint) -> Ranges:
    return usable_ranges(Compiler(1), nano.vqgan, nano.config)


def paint(checkpoint: Checkpoint, ranges: Ranges | None, grid: np.ndarray, num_threads: int = 1) -> np.ndarray:
    """In fp32 where ranges are None."""
    tensors, config = checkpoint.vqgan, checkpoint.config
    layers = Layers(tensors, config) if ranges is None else Int8Layers(tensors, config, ranges)
    request = (
        Compiler(num_threads).compile(build_decoder(layers), F32 if ranges is None else BF16).create_infer_request()
    )
    request.infer({"ids": grid.astype(np.int32)})
    pixels: np.ndarray = request.get_tensor("pixels").data.clip(0, 1)
    return pixels


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
    patches = np.random.default_rng(1).integers(0, nano.config.picture.codebook_size, (4, 4))
    grid = np.kron(patches, np.ones((2, 2), int)).ravel()
    exact, found, bf16 = (paint(nano, which, grid) for which in (None, ranges, {}))
    assert psnr_db(found, exact) > 45
    assert not np.array_equal(found, bf16), "nothing was computed in int8"


def test_one_thread_paints_what_two_do(nano: Checkpoint, ranges: Ranges) -> None:
    grid = random_grids(nano.vqgan, nano.config)[0]
    one, two = (paint(nano, ranges, grid, num_threads) for num_threads in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_an_output_channel_without_weights_stays_at_its_bias() -> None:
    checkpoint = random_checkpoint()
    checkpoint.vqgan["decoder.up.0.block.0.conv1.weight"][3] = 0
    measured = usable_ranges(Compiler(1), checkpoint.vqgan, checkpoint.config, least_psnr_db=20)
    grid = random_grids(checkpoint.vqgan, checkpoint.config)[0]
    assert psnr_db(paint(checkpoint, measured, grid), paint(checkpoint, None, grid)) > 25


def test_int8_that_could_be_seen_is_not_used(nano: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    assert usable_ranges(Compiler(1), nano.vqgan, nano.config, least_psnr_db=90) == {}
    assert "pixels stay bf16" in caplog.text


def test_codes_that_training_never_moved_are_not_drawn() -> None:
    checkpoint = random_checkpoint()
    checkpoint.vqgan["quantize.embedding.weight"][10:] *= 1e-4
    grids = random_grids(checkpoint.vqgan, checkpoint.config)
    assert grids.shape == (4, 36)
    assert set(grids.ravel()) == set(range(10))


def test_ranges_are_measured_once(tmp_path: Path, nano: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kept_ranges(tmp_path, Compiler(1), nano)
    monkeypatch.setattr(openvino_ranges, "usable_ranges", lambda *_: pytest.fail("measured again"))
    assert kept_ranges(tmp_path, Compiler(1), nano) == first != {}


def test_a_damaged_file_is_named(tmp_path: Path, nano: Checkpoint) -> None:
    kept_ranges(tmp_path, Compiler(1), nano)
    (file,) = tmp_path.rglob("ranges.json")
    file.write_text(json.dumps(["not a mapping"]), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"ranges\.json is damaged; delete it"):
        kept_ranges(tmp_path, Compiler(1), nano)


def test_the_runner_paints_in_int8_what_is_worth_keeping(
    tmp_path: Path, nano: Checkpoint, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = random_grids(nano.vqgan, nano.config)[:1]
    plain = load_cpu_runner(nano, dtype="int8", num_slots=1, cache_dir=tmp_path).detokenize(grids)
    monkeypatch.setattr(cpu_load, "WORTH_KEEPING_BYTES", 0)
    first, second = (
        load_cpu_runner(nano, dtype="int8", num_slots=1, cache_dir=tmp_path).detokenize(grids) for _ in range(2)
    )
    np.testing.assert_array_equal(plain[0], (paint(nano, {}, grids[0]) * 255).astype(np.uint8))
    np.testing.assert_array_equal(first[0], (paint(nano, ranges, grids[0]) * 255).astype(np.uint8))
    np.testing.assert_array_equal(first, second)


def test_ranges_that_cannot_be_kept_are_no_reason_not_to_start(
    tmp_path: Path, nano: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise CheckpointError("cannot write")

    monkeypatch.setattr(cpu_load, "WORTH_KEEPING_BYTES", 0)
    monkeypatch.setattr(openvino_pixels, "kept_ranges", refuse)
    grids = random_grids(nano.vqgan, nano.config)[:1]
    found = load_cpu_runner(nano, dtype="int8", num_slots=1, cache_dir=tmp_path).detokenize(grids)
    assert "pixels stay bf16, which takes half as long again: cannot write" in caplog.text
    np.testing.assert_array_equal(found[0], (paint(nano, {}, grids[0]) * 255).astype(np.uint8))
