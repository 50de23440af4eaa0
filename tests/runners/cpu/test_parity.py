"""The CPU runners against the reference implementation's own outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dalle_server.engine.runners.cpu.runner import CpuRunner
from tests.parity.loading import min_dalle_checkpoint
from tests.runners.cpu.cpu_runners import cpu_runner, needs_compiled
from tests.runners.golden_checkpoints import (
    GOLDENS,
    GREEDY,
    admit_goldens,
    force,
    generate,
    golden_texts,
    goldens,
    open_golden,
)

FP32_TOLERANCE = 2e-4
SCALE = 10.0
PAD = 1  # of the golden tokenizer

Case = tuple[CpuRunner, dict[str, np.ndarray]]


@pytest.fixture(params=["fp32", pytest.param("fp32", marks=needs_compiled)], scope="module")
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=GOLDENS, scope="module")
def case(request: pytest.FixtureRequest, form: str) -> Case:
    return cpu_runner(open_golden(request.param), form, num_slots=4), goldens(GOLDENS[request.param])


@pytest.mark.parametrize("branch", ["", "_uncond"])
def test_encoder_states(case: Case, branch: str) -> None:
    runner, golden = case
    for text, expected in zip(golden_texts(golden, branch), golden[f"encoder_last_hidden{branch}"], strict=True):
        runner.encode([text])
        # What stands at padding is never looked at, and not always computed.
        states = runner._texts.states()  # type: ignore[attr-defined]
        np.testing.assert_allclose(states[: text.length], expected[: text.length], rtol=0, atol=FP32_TOLERANCE)


@pytest.mark.parametrize("branch", ["", "_uncond"])
def test_logits_of_one_branch(case: Case, branch: str) -> None:
    runner, golden = case
    admit_goldens(runner, golden)
    scale = 1.0 if branch == "" else 0.0
    logits = force(runner, golden["decoder_input_ids"], replace(GREEDY, condition_scale=scale))
    expected = golden[f"decoder_logits{branch}"][..., : runner.config.picture.codebook_size]
    np.testing.assert_allclose(logits[:, golden["positions"]], expected, rtol=0, atol=FP32_TOLERANCE)


def test_guided_logits(case: Case) -> None:
    runner, golden = case
    admit_goldens(runner, golden)
    assert golden["condition_scale"] == SCALE
    logits = force(runner, golden["decoder_input_ids"])[:, golden["positions"]]
    expected = golden["supercond_logits"][..., : runner.config.picture.codebook_size]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2 * SCALE * FP32_TOLERANCE)


@pytest.mark.parametrize(("sequence", "scale"), [("seq_greedy", 1.0), ("seq_top1_cs10", 10.0), ("seq_top1_cs3", 3.0)])
def test_best_token_sequences(case: Case, sequence: str, scale: float) -> None:
    runner, golden = case
    tokens = generate(runner, admit_goldens(runner, golden), replace(GREEDY, condition_scale=scale))
    np.testing.assert_array_equal(tokens, golden[sequence][:, 1:])


def test_weights_in_min_dalles_form(form: str) -> None:
    runner = cpu_runner(min_dalle_checkpoint("min-dalle-tiny"), form, num_slots=4)
    golden = goldens("min-dalle-tiny/goldens.npz")
    for branch in ("", "_uncond"):
        golden[f"attention_mask{branch}"] = golden[f"input_ids{branch}"] != PAD
    num_images = admit_goldens(runner, golden)
    for branch, scale in (("cond", 1.0), ("uncond", 0.0)):
        logits = force(runner, golden["decoder_input_ids"], replace(GREEDY, condition_scale=scale))
        expected = golden[f"decoder_logits_{branch}"][..., : runner.config.picture.codebook_size]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=FP32_TOLERANCE)
    np.testing.assert_array_equal(generate(runner, num_images, GREEDY), golden["seq_top1_cs10"][:, 1:])


def test_pixels() -> None:
    runner = cpu_runner(open_golden("tiny-mini"), "fp32", num_slots=1)
    golden = goldens("tiny-vqgan/goldens.npz")
    pixels = runner.detokenize(golden["indices"].astype(np.int32))
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - golden["pixels_uint8"]).max() <= 1
    assert (pixels == golden["pixels_uint8"]).mean() > 0.999
