"""One failure stays one failure: what costs a picture, or its request, and no neighbour."""

import pytest

from dalle_server.errors import CheckpointError
from dalle_server.generation import Done, Failed, ImageReady
from dalle_server.request import GenerationRequest, ImageKey
from tests.engine.conftest import NUM_TOKENS, alone, run, same
from tests.fake_runner import FakeRunner


def test_no_memory_at_admission_costs_that_request_alone(make_engine):
    runner = FakeRunner(num_slots=2)
    engine = make_engine(runner)

    def encode(texts):
        if texts[0].length > 10:
            raise MemoryError

    runner.on_encode = encode
    long = engine.submit(GenerationRequest.of("a very long prompt", 2, seed=1))
    short = engine.submit(GenerationRequest.of("a", 2, seed=1))
    run(engine)
    assert isinstance(long.terminal, Failed) and "memory" in long.terminal.error.message
    assert same(short.result(), alone(GenerationRequest.of("a", 2, seed=1)))
    assert engine.stats().faults == 0


@pytest.mark.parametrize("fails_at", range(6))
def test_no_memory_for_a_slot_costs_that_request_alone(fails_at, make_engine):
    """Also where others of the same prompt are admitted in the same turn, and siblings of the lost one with them."""
    runner = FakeRunner(num_slots=8)
    engine = make_engine(runner)
    slots = []

    def admit(slot):
        slots.append(slot)
        if len(slots) == fails_at + 1:
            raise MemoryError

    runner.on_admit = admit
    prompts = ["a cat", "a cat", "a dog"]
    generations = [engine.submit(GenerationRequest.of(prompt, 2, seed=seed)) for seed, prompt in enumerate(prompts)]
    run(engine)
    (lost,) = [generation for generation in generations if isinstance(generation.terminal, Failed)]
    assert "memory" in lost.terminal.error.message and engine.stats().faults == 0
    for generation in generations:
        assert generation is lost or same(generation.result(), alone(generation.request))


@pytest.mark.parametrize("lookahead", [0, 1, 3])
@pytest.mark.parametrize("fits", range(1, 8))
@pytest.mark.parametrize("after", [0, 3])
def test_no_memory_at_a_step_goes_on_with_fewer_slots(fits, after, lookahead, make_engine):
    """One retry, with the next smaller bucket (8 → 4): the evicted pictures come later, and do not change."""
    runner = FakeRunner(num_slots=8, lookahead=lookahead)
    engine = make_engine(runner)
    sizes = []

    def step(rows):
        sizes.append(len(rows))
        if len(sizes) > after and len(rows) > fits:
            raise MemoryError

    runner.on_step = step
    generation = engine.submit(GenerationRequest.of("a", 8, seed=1))
    run(engine)
    if fits < 4:
        assert isinstance(generation.terminal, Failed) and engine.stats().faults == 1
        return
    assert same(generation.result(), alone(GenerationRequest.of("a", 8, seed=1)))
    assert sizes == [8] * (after + 1) + [4] * (2 * NUM_TOKENS - after) and engine.stats().faults == 0
    runner.on_step = lambda rows: sizes.append(len(rows))
    generation = engine.submit(GenerationRequest.of("a", 8, seed=1))
    run(engine)
    assert sizes[-1] == 8, "all slots again once nothing was left to do"


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_answers_to_an_evicted_picture_are_not_taken_for_its_new_ones(lookahead, make_engine):
    runner = FakeRunner(num_slots=8, lookahead=lookahead)
    engine = make_engine(runner)
    generations = [engine.submit(GenerationRequest.of("a", seed=i)) for i in range(8)]
    for _ in range(6):
        engine.step()
    for generation in generations[1:7]:
        generation.cancel()
    failures = [MemoryError()]

    def step(rows):
        if failures:
            raise failures.pop()

    runner.on_step = step
    run(engine)  # the last picture moves from slot 7 to slot 1 while its old steps are still under way
    assert not failures
    for seed in (0, 7):
        assert same(generations[seed].result(), alone(GenerationRequest.of("a", seed=seed)))


@pytest.mark.parametrize("lookahead", [0, 1])
def test_nan_in_one_row_costs_that_picture_alone(lookahead, make_engine):
    runner = FakeRunner(num_slots=2, lookahead=lookahead)
    engine = make_engine(runner)
    runner.nan_at = {ImageKey(1, 0): 5}
    spoiled = engine.submit(GenerationRequest.of("a", seed=1))
    neighbour = engine.submit(GenerationRequest.of("b", seed=2))
    following = engine.submit(GenerationRequest.of("c", seed=3))
    run(engine)
    assert isinstance(spoiled.terminal, Failed) and "finite" in spoiled.terminal.error.message
    assert same(neighbour.result(), alone(GenerationRequest.of("b", seed=2)))
    assert same(following.result(), alone(GenerationRequest.of("c", seed=3))), "the slot's next picture"


def test_siblings_of_a_lost_picture_are_delivered_before_the_error(make_engine):
    runner = FakeRunner()
    engine = make_engine(runner)
    runner.nan_at = {ImageKey(1, 1): 3}
    generation = engine.submit(GenerationRequest.of("a", 3, seed=1))
    run(engine)
    events = list(generation.events())
    ready = [event.image for event in events if isinstance(event, ImageReady)]
    expected = alone(GenerationRequest.of("a", 3, seed=1))
    assert same(ready, [expected[0], expected[2]]) and isinstance(events[-1], Failed)


def test_pixels_that_fail_cost_that_picture_alone(make_engine):
    runner = FakeRunner()
    engine = make_engine(runner)
    calls = []

    def detokenize(grids):
        calls.append(grids)
        if len(calls) == 1:
            raise RuntimeError("injected")

    runner.on_detokenize = detokenize
    first, second = (engine.submit(GenerationRequest.of("a", seed=i)) for i in (1, 2))
    run(engine)
    assert {type(first.terminal), type(second.terminal)} == {Failed, Done}
    assert engine.state == "ready"


@pytest.mark.parametrize(
    ("error", "told"),
    [(CheckpointError("the weights are broken"), "the weights are broken"), (RuntimeError("secret"), "try again")],
)
def test_pixels_that_fail_are_told_by_what_would_help(error, told, make_engine):
    """Trying again mends no weights."""
    runner = FakeRunner()

    def detokenize(grids):
        raise error

    runner.on_detokenize = detokenize
    engine = make_engine(runner)
    generation = engine.submit(GenerationRequest.of("a", seed=1))
    run(engine)
    assert isinstance(generation.terminal, Failed)
    found = generation.terminal.error
    assert told in found.message and "secret" not in found.message
    assert found.code == ("checkpoint_error" if isinstance(error, CheckpointError) else "generation_failed")
    assert engine.state == "ready"


def test_one_broken_code_costs_no_neighbour_in_a_batch_of_pixels(make_engine):
    """A GPU decodes several pictures at once."""
    runner = FakeRunner()
    engine = make_engine(runner, detokenize_batch=8)
    grids = [(seed,) * NUM_TOKENS for seed in range(4)]

    def detokenize(batch):
        if (batch == 2).any():
            raise CheckpointError("the weights are broken")

    runner.on_detokenize = detokenize
    generations = [engine.submit(GenerationRequest.of("a", seed=1, forced_tokens=grid)) for grid in grids]
    run(engine)
    assert [type(generation.terminal) for generation in generations] == [Done, Done, Failed, Done]
