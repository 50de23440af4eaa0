"""The bf16 graph of the VQGAN decoder: written in another way than the f32 one, it has to give the same picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import openvino as ov
import pytest
import torch
import torch.nn.functional as F

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.openvino.compile import Compiler
from dalle_server.engine.runners.cpu.openvino.vqgan import build_decoder
from dalle_server.engine.runners.cpu.openvino.vqgan_bf16 import BF16Layers, doubled_kernel
from dalle_server.engine.runners.cpu.openvino.vqgan_layers import Layers
from dalle_server.models.config import ModelConfig
from tests.runners.cpu.cpu_runners import needs_bf16
from tests.runners.random_checkpoint import START, random_checkpoint

Kind = Callable[[Mapping[str, Any], ModelConfig], Layers]
LIMIT = 0.006  # rms error over the deviation of the pixels
F32, BF16 = ov.Type.f32, ov.Type.bf16


def paint(checkpoint: Checkpoint, kind: Kind, precision: ov.Type, num_threads: int = 1) -> np.ndarray:
    program = Compiler(num_threads).compile(build_decoder(kind(checkpoint.vqgan, checkpoint.config)), precision)
    request = program.create_infer_request()
    request.infer({"ids": np.random.default_rng(2).integers(0, START, 36).astype(np.int32)})
    pixels: np.ndarray = request.get_tensor("pixels").data.clip(0, 1)
    return pixels


def relative_error(checkpoint: Checkpoint, precision: ov.Type) -> float:
    exact, found = paint(checkpoint, Layers, F32), paint(checkpoint, BF16Layers, precision)
    assert found.shape == exact.shape == (12, 12, 3)
    return float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_it_is_the_same_model(stored: type) -> None:
    assert relative_error(random_checkpoint(dtype=stored), F32) < 1e-5


@needs_bf16
@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_bf16_costs_little(stored: type) -> None:
    assert 1e-4 < relative_error(random_checkpoint(dtype=stored), BF16) < LIMIT


@needs_bf16
def test_features_far_from_zero_are_normalised_all_the_same() -> None:
    """Far beyond a trained model: the mean of squares less the square of the mean would be negative here."""
    checkpoint = random_checkpoint()
    checkpoint.vqgan["decoder.up.1.upsample.conv.bias"] += 100
    assert relative_error(checkpoint, BF16) < LIMIT


@needs_bf16
def test_features_that_are_all_equal_stay_finite() -> None:
    checkpoint = random_checkpoint()
    for name in ("post_quant_conv", "decoder.conv_in"):
        checkpoint.vqgan[f"{name}.weight"][:] = 0
    assert np.isfinite(paint(checkpoint, BF16Layers, BF16)).all()


@needs_bf16
def test_one_thread_paints_what_two_do() -> None:
    one, two = (paint(random_checkpoint(), BF16Layers, BF16, num_threads) for num_threads in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_doubling_and_convolving_are_one_transposed_convolution() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((5, 3, 3, 3)).astype(np.float32)
    picture = torch.tensor(generator.standard_normal((1, 3, 6, 7)).astype(np.float32))
    expected = F.conv2d(F.interpolate(picture, scale_factor=2.0, mode="nearest"), torch.tensor(weight), padding=1)
    found = F.conv_transpose2d(picture, torch.tensor(doubled_kernel(weight)), stride=2, padding=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
