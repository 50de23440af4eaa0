"""Pixels to tokens on every runner: the reference's ids, or a refusal that says what would help."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import TOKENIZE, Runner
from dalle_server.engine.runners.torch.runner import TorchRunner
from dalle_server.errors import NotSupported
from tests.parity.loading import golden_checkpoint, goldens, load_vqgan, min_dalle_checkpoint
from tests.runners.cpu.cpu_runners import cpu_runner, needs_compiled

Load = Callable[[Checkpoint], Runner]
RUNNERS: dict[str, Load] = {
    "torch": lambda checkpoint: TorchRunner(checkpoint, num_slots=1),
    "torch bf16": lambda checkpoint: TorchRunner(checkpoint, num_slots=1, dtype="bf16"),
    "compiled fp32": lambda checkpoint: cpu_runner(checkpoint, "fp32", num_slots=1),
    "compiled int8": lambda checkpoint: cpu_runner(checkpoint, "int8", num_slots=1),
}


@pytest.fixture(
    params=[pytest.param(name, marks=needs_compiled if "compiled" in name else ()) for name in RUNNERS], scope="module"
)
def load(request: pytest.FixtureRequest) -> Load:
    return RUNNERS[request.param]


def test_every_runner_finds_the_references_ids_in_bytes(load: Load) -> None:
    """The golden pictures, rounded to bytes, through the reference module that the goldens hold to theirs."""
    checkpoint = golden_checkpoint("tiny-mega")
    pixels = np.rint(goldens("tiny-vqgan/goldens.npz")["encode_images"] * 255).astype(np.uint8)
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    expected = load_vqgan().encode(images, checkpoint.config.picture.codebook_size).numpy()
    runner = load(checkpoint)
    assert TOKENIZE in runner.info.features
    found = runner.tokenize(pixels)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(runner.tokenize(pixels[1:]), expected[1:])


def test_a_checkpoint_without_an_encoder_says_so_and_what_would_help(load: Load) -> None:
    checkpoint = min_dalle_checkpoint("min-dalle-tiny")
    assert not checkpoint.has_encoder
    runner = load(checkpoint)
    assert TOKENIZE not in runner.info.features
    side = checkpoint.config.picture.width_px
    with pytest.raises(NotSupported, match=r"no encoder.*docs/checkpoints\.md"):
        runner.tokenize(np.zeros((1, side, side, 3), np.uint8))
