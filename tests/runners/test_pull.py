"""Tokens drawn towards given ones, on every runner: the same draw everywhere, whatever computes the distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.pull import CodeDistances
from dalle_server.engine.runners.base import LOGPROBS, PULL, Runner, StepRow
from dalle_server.engine.runners.torch.runner import TorchRunner
from dalle_server.engine.sampling import log_probabilities, sample
from dalle_server.request import FREE, ImageKey, SamplingParams
from tests.families.janus_goldens import opened
from tests.runners.cpu.cpu_runners import cpu_runner, needs_compiled
from tests.runners.golden_checkpoints import open_golden
from tests.runners.torch.torch_forms import FORMS, options

NUM_IMAGES = 3
SAMPLING = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, condition_scale=3.0)
PULLS = (6.0, 0.0, 30.0)
CHECKPOINTS: dict[str, Callable[[], Checkpoint]] = {
    "dalle-bart": lambda: open_golden("tiny-mini"),
    "janus": lambda: opened(max_text_length=64),
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return CHECKPOINTS[request.param]()


@pytest.fixture(scope="module", params=[*FORMS, pytest.param("compiled", marks=needs_compiled)])
def runner(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Iterator[Runner]:
    if request.param == "compiled":
        made: Runner = cpu_runner(checkpoint, "fp32", num_slots=4, num_threads=1)
    else:
        made = TorchRunner(checkpoint, num_slots=4, **options(request.param))
    yield made
    made.close()


def admit(runner: Runner) -> None:
    from dalle_server.engine.selftest import _texts

    texts = runner.encode(_texts(runner))
    for slot in range(NUM_IMAGES):
        runner.admit(slot, texts[0], texts[1])


def near_of(runner: Runner, position: int) -> int:
    return (5 * position + 2) % runner.config.picture.codebook_size


def rows_at(runner: Runner, position: int) -> list[StepRow]:
    return [
        StepRow(slot, position, ImageKey(9, slot), SAMPLING, wants=frozenset({LOGPROBS}),
                near=near_of(runner, position) if pull else FREE, pull=pull)
        for slot, pull in enumerate(PULLS)
    ]  # fmt: skip


def test_the_draw_is_that_of_the_lowered_logits(runner: Runner, checkpoint: Checkpoint) -> None:
    assert PULL in runner.info.features
    distances = CodeDistances(checkpoint.codebook)
    admit(runner)
    changed = 0
    for position in range(12):
        rows = rows_at(runner, position)
        written = runner.step(rows).result()
        guided = np.asarray(runner.guided_logits(), np.float32)
        lowered = distances.lowered(guided, rows)
        assert (lowered[1] == guided[1]).all() and (lowered[[0, 2]] < guided[[0, 2]]).any()
        assert written.tokens.tolist() == sample(lowered, rows).tolist()
        changed += int((written.tokens != sample(guided, rows)).sum())
        assert written.logprobs is not None
        for n, token in enumerate(written.tokens):
            _, told = log_probabilities(guided[n], lowered[n], SAMPLING, int(token))
            assert abs(written.logprobs[n, 1] - told) < 1e-4
    assert changed > 3


def test_company_does_not_matter(runner: Runner) -> None:
    admit(runner)
    together = [runner.step(rows_at(runner, position)).result().tokens for position in range(8)]
    for slot in range(NUM_IMAGES):
        admit(runner)
        alone = [runner.step([rows_at(runner, position)[slot]]).result().tokens[0] for position in range(8)]
        assert alone == [tokens[slot] for tokens in together]
