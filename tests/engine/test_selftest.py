"""The start-up self-test finds a machine whose row buckets disagree, and repairs what can be repaired."""

import numpy as np
import pytest

from dalle_server.engine.selftest import check_determinism
from dalle_server.errors import CheckpointError, ConfigError
from dalle_server.request import GenerationRequest, ImageKey
from tests.engine.conftest import new_engine, run, same
from tests.fake_runner import FakeRunner


def test_buckets_that_agree_are_left_alone():
    runner = FakeRunner(num_slots=6)
    assert check_determinism(runner) == "exact: steps of 1, 2, 4 and 6 images agree bit for bit on this machine"
    assert runner.row_buckets == (1, 2, 4, 6)
    assert check_determinism(FakeRunner(num_slots=1)).startswith("exact: steps of 1 image")


@pytest.mark.parametrize(
    ("own_class", "left", "verdict"),
    [
        ({1}, (2, 4, 8), "exact: steps of 2, 4 and 8 images agree bit for bit on this machine; smaller ones do not"),
        ({1, 2}, (4, 8), "exact: steps of 4 and 8 images agree bit for bit on this machine; smaller ones do not"),
        ({2}, (4, 8), "exact: steps of 4 and 8 images agree bit for bit on this machine; smaller ones do not"),
        ({8}, (8,), "exact: steps of 8 images agree bit for bit on this machine; smaller ones do not"),
    ],
)
def test_buckets_that_disagree_are_padded(own_class, left, verdict):
    runner = FakeRunner(num_slots=8)
    runner.own_class = own_class
    assert check_determinism(runner).startswith(verdict)
    assert runner.row_buckets == left


def test_pictures_are_exact_on_a_machine_whose_buckets_disagree():
    """Without the self-test they are not, which shows that this test can fail."""

    def first_logits(num_others, *, tested):
        runner = FakeRunner(num_slots=4)
        runner.own_class = {1}
        engine = new_engine(runner)
        if not tested:
            runner.row_buckets = (1, 2, 4)
        generation = engine.submit(GenerationRequest.of("a", seed=1))
        others = [engine.submit(GenerationRequest.of("b", seed=i)) for i in range(num_others)]
        engine.step()
        logits = runner.guided_logits()[0].copy()
        run(engine)
        assert all(other.terminal for other in others)
        return generation.result(), logits

    (alone, logits), (in_company, logits_in_company) = first_logits(0, tested=True), first_logits(3, tested=True)
    assert same(alone, in_company) and np.array_equal(logits, logits_in_company)
    assert not np.array_equal(first_logits(0, tested=False)[1], logits)


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
