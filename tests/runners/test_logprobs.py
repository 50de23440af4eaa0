"""How likely each token was: every runner's answer against the goldens' logits, and no change to what is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dalle_server.engine.runners.base import LOGPROBS, Runner, StepRow
from dalle_server.engine.runners.cpu import runner as cpu_runner_module
from dalle_server.engine.runners.torch.runner import TorchRunner
from dalle_server.request import ImageKey, SamplingParams
from tests.runners.cpu.cpu_runners import cpu_runner, needs_compiled
from tests.runners.golden_checkpoints import GOLDENS, admit_goldens, golden_texts, goldens, open_golden

NAME = "tiny-mini"
SAMPLING = SamplingParams(temperature=0.7, top_k=9, top_p=0.8, condition_scale=3.0)
WANTED = frozenset({LOGPROBS})
RUNNERS: dict[str, Callable[[], Runner]] = {
    "torch": lambda: TorchRunner(open_golden(NAME), num_slots=4),
    "torch on the device": lambda: TorchRunner(open_golden(NAME), num_slots=4, on_device=True),
    "fp32": lambda: cpu_runner(open_golden(NAME), "fp32", num_slots=4),
}


@pytest.fixture(
    params=[pytest.param(name, marks=needs_compiled if "compiled" in name else ()) for name in RUNNERS], scope="module"
)
def runner(request: pytest.FixtureRequest) -> Runner:
    return RUNNERS[request.param]()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def as_sampled(logits: np.ndarray, sampling: SamplingParams) -> np.ndarray:
    """(C,) guided logits → log-probabilities under the filters, written out the long way."""
    scaled = logits.astype(np.float64) / float(sampling.temperature or 1)
    kept = np.argsort(-scaled, kind="stable")[: sampling.top_k]
    probabilities = np.exp(log_softmax(scaled[kept]))
    kept = kept[np.cumsum(probabilities) - probabilities < (sampling.top_p or 1)]
    answer = np.full(len(logits), -np.inf)
    answer[kept] = log_softmax(scaled[kept])
    return answer


def forced(runner: Runner, tokens: np.ndarray, wants: frozenset[str]) -> list[np.ndarray]:
    """What steps tell of `tokens` (N, I), image 1 always without asking."""
    told = []
    for position, column in enumerate(tokens.T):
        rows = [
            StepRow(n, position, ImageKey(0, n), SAMPLING, int(token), wants if n != 1 else frozenset())
            for n, token in enumerate(column)
        ]
        result = runner.step(rows).result()
        np.testing.assert_array_equal(result.tokens, column)
        if result.logprobs is not None:
            told.append(result.logprobs)
    return told


def test_given_tokens_against_the_goldens_logits(runner: Runner) -> None:
    golden = goldens(GOLDENS[NAME])
    num_images, codes = admit_goldens(runner, golden), runner.config.picture.codebook_size
    positions = [int(p) for p in golden["positions"] if p + 1 < golden["decoder_input_ids"].shape[1]]
    tokens = golden["decoder_input_ids"][:, 1:]
    assert LOGPROBS in runner.info.features and tokens.max() < codes
    told = forced(runner, tokens, WANTED)
    conditional, unconditional = (golden[f"decoder_logits{branch}"][..., :codes] for branch in ("", "_uncond"))
    places = {int(position): place for place, position in enumerate(golden["positions"])}
    for image in range(num_images):
        for position in positions:
            token, place = tokens[image, position], places[position]
            if image == 1:
                assert np.isnan(told[position][image]).all()
                continue
            whole, sampled = told[position][image]
            c, u = conditional[image, place], unconditional[image, place]
            np.testing.assert_allclose(whole, log_softmax(c)[token], rtol=0, atol=5e-4)
            expected = as_sampled(u + 3 * (c - u), SAMPLING)[token]
            assert sampled == expected == -np.inf or abs(sampled - expected) < 5e-3


def test_without_guidance_both_columns_are_of_the_same_logits(runner: Runner) -> None:
    golden = goldens(GOLDENS[NAME])
    num_images = admit_goldens(runner, golden)
    free = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, condition_scale=1.0)
    own = [free, replace(free, condition_scale=3.0), free][:num_images]
    for position in range(4):
        rows = [StepRow(n, position, ImageKey(7, n), sampling, wants=WANTED) for n, sampling in enumerate(own)]
        told = runner.step(rows).result().logprobs
        assert told is not None and np.isfinite(told).all()
        for (whole, sampled), sampling in zip(told, own, strict=True):
            assert (abs(whole - sampled) < 1e-5) == (sampling is free)


def test_asking_changes_no_token_and_what_was_drawn_was_possible(runner: Runner) -> None:
    golden = goldens(GOLDENS[NAME])
    drawn = {}
    for wants in (frozenset(), WANTED):
        num_images = admit_goldens(runner, golden)
        steps = []
        for position in range(runner.config.picture.num_tokens):
            rows = [StepRow(n, position, ImageKey(7, n), SAMPLING, wants=wants) for n in range(num_images)]
            steps.append((runner.step(rows).result(), runner.guided_logits().copy()))
        drawn[wants] = steps
    for (plain, logits), (asked, same_logits) in zip(*drawn.values(), strict=True):
        np.testing.assert_array_equal(plain.tokens, asked.tokens)
        np.testing.assert_array_equal(logits, same_logits)
        assert plain.logprobs is None and asked.logprobs is not None
        assert (asked.logprobs <= 0).all() and np.isfinite(asked.logprobs).all()
        # The filters leave nine candidates at most, of which the drawn one is one.
        expected = [as_sampled(row, SAMPLING)[token] for row, token in zip(logits, asked.tokens, strict=True)]
        np.testing.assert_allclose(asked.logprobs[:, 1], expected, rtol=0, atol=1e-4)


@needs_compiled
def test_no_memory_for_them_changes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine tries such a step again with fewer rows. The torch runner's forms: torch/test_runner.py."""
    runner, golden = RUNNERS["fp32"](), goldens(GOLDENS[NAME])

    def starve(*_: object) -> None:
        raise MemoryError

    def drawn(*, fails: bool) -> list[list[int]]:
        num_images, tokens = admit_goldens(runner, golden), []
        for position in range(runner.config.picture.num_tokens):
            rows = [StepRow(n, position, ImageKey(7, n), SAMPLING, wants=WANTED) for n in range(num_images)]
            if fails:
                with monkeypatch.context() as patch, pytest.raises(MemoryError):
                    patch.setattr(cpu_runner_module, "log_probabilities", starve)
                    runner.step(rows)
            tokens.append(runner.step(rows).result().tokens.tolist())
        return tokens

    assert drawn(fails=True) == drawn(fails=False)


def test_numbers_that_are_not_finite_have_no_likelihood() -> None:
    checkpoint = open_golden(NAME)
    weight = checkpoint.transformer["lm_head.weight"].copy()  # other tests read the golden's own
    weight[3] = np.nan
    checkpoint = replace(checkpoint, transformer={**checkpoint.transformer, "lm_head.weight": weight})
    golden = goldens(GOLDENS[NAME])
    texts = golden_texts(golden)[0], golden_texts(golden, "_uncond")[0]
    runners: list[Runner] = [TorchRunner(checkpoint, num_slots=2), cpu_runner(checkpoint, "fp32", num_slots=2)]
    for runner in runners:
        runner.admit(0, *runner.encode(texts))
        result = runner.step([StepRow(0, 0, ImageKey(1), replace(SAMPLING, top_k=0), wants=WANTED)]).result()
        assert result.logprobs is not None and np.isnan(result.logprobs).all()
