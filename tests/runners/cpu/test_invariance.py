"""A picture's bits do not depend on its company: not on neighbours, slots, order, positions or leftovers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest

from dalle_server.engine.runners.base import NAN_TOKEN, StepRow
from dalle_server.engine.runners.cpu.runner import CpuRunner
from dalle_server.engine.selftest import check_determinism
from dalle_server.request import ImageKey, SamplingParams
from tests.runners.cpu.cpu_runners import FORMATS, cpu_runner, needs_compiled
from tests.runners.random_checkpoint import BY_FAMILY, random_text

pytestmark = needs_compiled

NUM_SLOTS = 16
SAMPLING = SamplingParams(temperature=1.0, top_k=8, top_p=1.0, condition_scale=10.0)


@dataclass
class Picture:
    """A prompt and a seed that run in `slot` from the step `begins` on. Every third one is not guided."""

    seed: int
    slot: int = 0
    begins: int = 0

    def admit(self, runner: CpuRunner) -> None:
        texts = [random_text(self.seed, 3 + 3 * self.seed), random_text(0, 2)]
        runner.admit(self.slot, *runner.encode(texts))

    def row(self, step: int) -> StepRow:
        sampling = SAMPLING if self.seed % 3 else replace(SAMPLING, condition_scale=1.0)
        return StepRow(self.slot, step - self.begins, ImageKey(self.seed), sampling)


def run(runner: CpuRunner, pictures: list[Picture], reverse: bool = False) -> dict[int, list[bytes]]:
    """Seed → its guided logits' bytes at every position."""
    length = runner.config.picture.num_tokens
    logits: dict[int, list[bytes]] = {picture.seed: [] for picture in pictures}
    for step in range(max(picture.begins for picture in pictures) + length):
        for picture in pictures:
            if picture.begins == step:
                picture.admit(runner)
        live = [picture for picture in pictures if 0 <= step - picture.begins < length]
        live = live[::-1] if reverse else live
        runner.step([picture.row(step) for picture in live]).result()
        for picture, row in zip(live, runner.guided_logits(), strict=True):
            logits[picture.seed].append(row.tobytes())
    return logits


@pytest.fixture(params=product(BY_FAMILY, FORMATS), ids="-".join, scope="module")
def runner(request: pytest.FixtureRequest) -> CpuRunner:
    """As the engine takes it: the start-up check has left the batch sizes whose bits agree on this machine."""
    family, dtype = request.param
    made = cpu_runner(BY_FAMILY[family](), dtype, num_slots=NUM_SLOTS)
    check_determinism(made)
    return made


@pytest.fixture(scope="module")
def alone(runner: CpuRunner) -> dict[int, list[bytes]]:
    return {seed: run(runner, [Picture(seed)])[seed] for seed in range(1, 4)}


@pytest.mark.parametrize(("company", "reverse"), [(2, False), (3, True), (5, False), (16, True)])
def test_any_company_any_slot_any_position(
    runner: CpuRunner, alone: dict[int, list[bytes]], company: int, reverse: bool
) -> None:
    slots = np.random.default_rng(company).permutation(NUM_SLOTS)
    seeds = [1, 2, 3, *range(4, 17)][:company]
    pictures = [Picture(seed, int(slots[n]), begins=(7 * n) % 19) for n, seed in enumerate(seeds)]
    together = run(runner, pictures, reverse)
    for seed in set(seeds) & alone.keys():
        assert together[seed] == alone[seed], f"picture {seed} among {company}"


def test_padding_to_a_larger_bucket_changes_nothing(runner: CpuRunner, alone: dict[int, list[bytes]]) -> None:
    before = runner.row_buckets
    runner.drop_buckets_below(6)
    assert runner.row_buckets[0] == 6
    assert run(runner, [Picture(1, slot=5)])[1] == alone[1]
    runner.row_buckets = before


def test_different_prompts_differ(alone: dict[int, list[bytes]]) -> None:
    assert len({tuple(logits) for logits in alone.values()}) == len(alone)


def test_a_picture_of_nan_harms_neither_its_neighbour_nor_its_successor(
    runner: CpuRunner, alone: dict[int, list[bytes]]
) -> None:
    healthy, sick = Picture(1, slot=0), Picture(2, slot=1)
    healthy.admit(runner)
    (text,) = runner.encode([random_text(2, 20)])
    text.cells[:] = 0xFF  # no number as float32 or float16, and none as the scale of an int8
    runner.admit(sick.slot, text, text)
    for step in range(runner.config.picture.num_tokens):
        tokens = runner.step([sick.row(step), healthy.row(step)]).result().tokens
        assert tokens[0] == NAN_TOKEN
        assert runner.guided_logits()[1].tobytes() == alone[1][step]
    assert run(runner, [Picture(3, slot=1)])[3] == alone[3]


def test_at_guidance_1_the_unconditional_text_is_not_even_read(
    runner: CpuRunner, alone: dict[int, list[bytes]]
) -> None:
    (nan,) = runner.encode([random_text(2, 20)])
    nan.cells[:] = 0xFF
    (own,) = runner.encode([random_text(3, 12)])  # the text of Picture(3)
    runner.admit(0, own, nan)
    for step in range(runner.config.picture.num_tokens):
        runner.step([Picture(3).row(step)]).result()
        assert runner.guided_logits()[0].tobytes() == alone[3][step]


def test_pixels_do_not_depend_on_the_batch(runner: CpuRunner) -> None:
    length = runner.config.picture.num_tokens
    grids = np.random.default_rng(0).integers(0, runner.config.picture.codebook_size, (3, length)).astype(np.int32)
    together = runner.detokenize(grids)
    assert together.shape == (3, runner.config.picture.width_px, runner.config.picture.width_px, 3)
    assert len({picture.tobytes() for picture in together}) == 3
    for grid, picture in zip(grids, together, strict=True):
        np.testing.assert_array_equal(runner.detokenize(grid[None])[0], picture)
