"""A VQGAN whose weights are no numbers: no black picture, no grid of zeros, on any runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.runners.torch.runner import TorchRunner
from dalle_server.errors import CheckpointError
from tests.runners.cpu.compiled.test_pixels import with_encoder
from tests.runners.cpu.cpu_runners import cpu_runner, needs_compiled

RUNNERS: list[tuple[str, Callable[[Checkpoint], Runner]]] = [
    ("torch", lambda checkpoint: TorchRunner(checkpoint, num_slots=1, num_threads=1)),
    ("compiled", lambda checkpoint: cpu_runner(checkpoint, "fp32", num_slots=1, num_threads=1)),
]
GRIDS = np.arange(36, dtype=np.int32)[None]
PIXELS = np.random.default_rng(1).integers(0, 255, (1, 12, 12, 3)).astype(np.uint8)


@pytest.fixture(params=[pytest.param(load, id=name, marks=needs_compiled) for name, load in RUNNERS])
def load(request: pytest.FixtureRequest) -> Callable[[Checkpoint], Runner]:
    made: Callable[[Checkpoint], Runner] = request.param
    return made


def broken(name: str, value: float) -> Checkpoint:
    """With one number of one tensor."""
    whole, _ = with_encoder()
    array = whole.vqgan[name].copy()
    array.flat[3] = value
    return replace(whole, vqgan={**whole.vqgan, name: array})


# One of each kind of layer.
DECODER = [
    "quantize.embedding.weight",
    "post_quant_conv.bias",
    "decoder.mid.attn_1.q.weight",
    "decoder.mid.attn_1.norm.bias",
    "decoder.up.0.block.0.norm1.weight",
    "decoder.up.1.upsample.conv.weight",
]
ENCODER = [
    "quantize.embedding.weight",
    "encoder.conv_in.weight",
    "encoder.down.0.block.0.norm1.weight",
    "encoder.down.0.downsample.conv.weight",
    "encoder.mid.attn_1.k.weight",
    "quant_conv.bias",
]


@pytest.mark.parametrize(("name", "value"), list(zip(DECODER, (np.nan, np.inf) * 3, strict=True)))
def test_pixels_that_are_no_numbers_are_an_error(load: Callable[[Checkpoint], Runner], name: str, value: float) -> None:
    with pytest.raises(CheckpointError, match=r"pixels.*not numbers.*weights are broken"):
        load(broken(name, value)).detokenize(GRIDS)


@pytest.mark.parametrize(("name", "value"), list(zip(ENCODER, (np.nan, np.inf) * 3, strict=True)))
def test_codes_that_are_no_numbers_are_an_error(load: Callable[[Checkpoint], Runner], name: str, value: float) -> None:
    with pytest.raises(CheckpointError, match=r"codes.*not numbers.*weights are broken"):
        load(broken(name, value)).tokenize(PIXELS)


def test_a_picture_without_the_broken_code_is_well(load: Callable[[Checkpoint], Runner]) -> None:
    whole, _ = with_encoder()
    array = whole.vqgan["quantize.embedding.weight"].copy()
    array[90] = np.nan
    runner = load(replace(whole, vqgan={**whole.vqgan, "quantize.embedding.weight": array}))
    np.testing.assert_array_equal(runner.detokenize(GRIDS), load(whole).detokenize(GRIDS))
    with pytest.raises(CheckpointError):
        runner.detokenize(np.where(GRIDS == 5, 90, GRIDS))
