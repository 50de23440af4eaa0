"""Pixels whose opposite edges meet: on the compiled runner and on torch, with the embedded model's own pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.runners.torch.runner import TorchRunner
from dalle_server.request import GenerationRequest
from dalle_server.text import open_tokenizer
from dalle_server.variants import ModelSize
from tests.runners.cpu.cpu_runners import cpu_runner, needs_compiled

RUNNERS: dict[str, Callable[[Checkpoint], Runner]] = {
    "compiled-fp32": lambda checkpoint: cpu_runner(checkpoint, "fp32", num_slots=8, num_threads=1),
    "compiled-int8": lambda checkpoint: cpu_runner(checkpoint, "int8", num_slots=8, num_threads=1),
    "torch": lambda checkpoint: TorchRunner(checkpoint, num_slots=8, num_threads=1),
}
PROMPTS = ("a red apple", "a green frog", "a city at night", "three rockets in space", "a cat and a dog", "the sun")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(find_checkpoint(ModelSize.NANO))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=needs_compiled if "compiled" in name else ()) for name in RUNNERS],
)
def runner(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Runner:
    return RUNNERS[request.param](checkpoint)


def grids(runner: Runner, count: int = 4) -> NDArray[np.int32]:
    picture = runner.config.picture
    found: NDArray[np.int32] = np.random.default_rng(0).integers(0, 500, (count, picture.num_tokens)).astype(np.int32)
    return found


def test_a_grid_moved_round_is_the_picture_moved_round(runner: Runner) -> None:
    """Nothing is an edge any more. It says all: padding, strides, doubling and attention alike."""
    side, px = runner.config.picture.grid_width, runner.config.picture.px_per_token
    grid = grids(runner, 1)
    moved = np.roll(grid.reshape(1, side, side), (3, 5), axis=(1, 2)).reshape(1, -1)
    expected = np.roll(runner.detokenize(grid, wraps=True)[0], (3 * px, 5 * px), axis=(0, 1)).astype(int)
    difference = np.abs(runner.detokenize(moved, wraps=True)[0] - expected)
    # Group norms add their rows up in another order; int8 rounds what is next to a half the other way.
    assert difference.max() <= (8 if runner.info.dtype == "int8" else 1) and difference.mean() < 0.2
    plain = np.abs(runner.detokenize(moved)[0] - expected)
    assert plain.max() > 20


def test_one_does_not_touch_the_other(runner: Runner) -> None:
    """The same memory serves both ways."""
    grid = grids(runner)
    before = runner.detokenize(grid)
    wrapped = runner.detokenize(grid, wraps=True)
    assert not np.array_equal(before, wrapped)
    np.testing.assert_array_equal(runner.detokenize(grid), before)
    np.testing.assert_array_equal(runner.detokenize(grid[1:2], wraps=True)[0], wrapped[1])


@needs_compiled
def test_runners_agree(checkpoint: Checkpoint) -> None:
    compiled, torch = RUNNERS["compiled-fp32"](checkpoint), RUNNERS["torch"](checkpoint)
    grid = grids(torch)
    difference = np.abs(compiled.detokenize(grid, wraps=True).astype(int) - torch.detokenize(grid, wraps=True))
    assert difference.max() <= 1


def steps(pixels: NDArray[np.uint8], px: int) -> tuple[float, float]:
    """Mean difference across the edges, and between the neighbouring columns and rows of token borders inside."""
    wide = pixels.astype(float)
    across = [np.abs(wide - np.roll(wide, 1, axis)).mean(axis=(1 - axis, 2)) for axis in (0, 1)]
    edges = float(np.mean([each[0] for each in across]))
    return edges, float(np.mean([each[px::px] for each in across]))


def test_edges_are_no_larger_a_step_than_columns_inside(runner: Runner, checkpoint: Checkpoint) -> None:
    engine = Engine(runner, open_tokenizer(checkpoint), max_waiting_images=64)
    handles = [
        engine.submit(GenerationRequest.of(prompt, 2, seed=7, seamless=seamless))
        for prompt in PROMPTS
        for seamless in (True, False)
    ]
    while engine.step():
        pass
    px = runner.config.picture.px_per_token
    made = [np.array([steps(image.pixels, px) for image in handle.result()]).mean(0) for handle in handles]
    seamless, plain = np.mean(made[0::2], axis=0), np.mean(made[1::2], axis=0)
    assert seamless[0] <= seamless[1]
    assert seamless[0] < plain[0]
