"""The start-up self-test finds a machine whose row buckets disagree, and repairs what can be repaired."""

import numpy as np
import pytest

from dalle_server.engine.runners.fake import FakeRunner
from dalle_server.engine.selftest import check_determinism
from dalle_server.errors import CheckpointError, ConfigError
from dalle_server.generation import GenerationRequest, ImageKey
from tests.engine.conftest import new_engine, run, same


def test_buckets_that_agree_are_left_alone():
    runner = FakeRunner(num_slots=6)
    assert check_determinism(runner) == "exact: steps of 1, 2, 4 and 6 images agree bit for bit on this machine"
    assert runner.row_buckets == (1, 2, 4, 6)
    assert check_determinism(FakeRunner(num_slots=1)).startswith("exact: steps of 1 image")


def test_one_bucket_is_pinned_when_they_disagree():
    runner = FakeRunner(num_slots=4)
    runner.unequal_buckets = True
    verdict = check_determinism(runner)
    assert verdict == "exact: steps of 1, 2 and 4 images differ on this machine, so each is padded to 4"
    assert runner.row_buckets == (4,)


def test_pictures_are_exact_on_a_machine_whose_buckets_disagree():
    """Without the pin they are not, which shows that the test can fail."""

    def picture(company, *, pinned):
        runner = FakeRunner(num_slots=4)
        runner.unequal_buckets = True
        engine = new_engine(runner)
        if not pinned:
            runner._pinned = None
            runner.row_buckets = (1, 2, 4)
        logits = []
        runner_step = runner.step

        def step(rows):
            pending = runner_step(rows)
            logits.append(runner.guided_logits()[0].copy())
            return pending

        runner.step = step
        generation = engine.submit(GenerationRequest.of("a", seed=1))
        others = [engine.submit(GenerationRequest.of("b", seed=i)) for i in range(company)]
        run(engine)
        assert all(other.terminal for other in others)
        return generation.result(), np.stack(logits)

    (pictures, logits), (in_company, logits_in_company) = picture(0, pinned=True), picture(3, pinned=True)
    assert same(pictures, in_company) and np.array_equal(logits, logits_in_company)
    assert not np.array_equal(picture(0, pinned=False)[1], picture(3, pinned=False)[1])


def test_a_machine_that_cannot_be_exact_is_not_called_so(caplog):
    runner = FakeRunner(num_slots=4)
    noise = np.random.default_rng(0)
    runner.guided_logits = lambda: noise.normal(size=(4, 8)).astype(np.float32)
    assert check_determinism(runner).startswith("approximate: ")
    assert caplog.records[-1].levelname == "WARNING"


def test_weights_that_give_nan_stop_the_start():
    runner = FakeRunner()
    runner.nan_at = {ImageKey(20210721): 1}
    with pytest.raises(CheckpointError, match="not finite"):
        check_determinism(runner)


def test_a_batch_that_does_not_fit_in_memory_stops_the_start():
    runner = FakeRunner(num_slots=8)

    def step(rows):
        if len(rows) > 4:
            raise MemoryError

    runner.on_step = step
    with pytest.raises(ConfigError, match="lower num_slots"):
        check_determinism(runner)
