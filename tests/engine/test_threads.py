"""The started engine: wake-ups, cancels, deadlines and drains in real time; pixels beside the steps."""

import threading
import time

import pytest

from dalle_server.errors import DeadlineExceeded, GenerationCancelled, InvalidRequest, NotReady, Overloaded
from dalle_server.generation import Cancelled, Done, ImageReady, Preview
from dalle_server.request import GenerationRequest
from tests.engine.conftest import NUM_TOKENS, alone, same
from tests.fake_runner import FakeRunner
from tests.web.waits import until


def started(make_engine, runner, **options):
    engine = make_engine(runner, **options)
    engine.start()
    return engine


def test_requests_of_many_threads_are_each_answered_as_if_alone(make_engine):
    engine = started(make_engine, FakeRunner(num_slots=3, lookahead=1))
    requests = [GenerationRequest.of("a", 1 + i % 3, seed=i, client=str(i % 4), preview_every=4) for i in range(12)]
    answers: dict[int, tuple] = {}

    def client(i):
        answers[i] = engine.submit(requests[i]).result(30)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(same(answers[i], alone(requests[i])) for i in range(len(requests)))
    assert engine.stats().requests["done"] == 12 and engine.stats().live_requests == 0


def test_an_idle_engine_sleeps_and_wakes_for_a_request(make_engine):
    runner = FakeRunner()
    engine = started(make_engine, runner)
    engine.submit(GenerationRequest.of("a", seed=1)).result(10)
    steps, ends = [], engine._loop.step
    engine._loop.step = lambda: steps.append(1) or ends()
    time.sleep(0.3)
    assert len(steps) <= 1, "no busy loop"
    engine.submit(GenerationRequest.of("b", seed=1)).result(10)


def test_cancel_takes_effect_within_a_token(make_engine):
    runner = FakeRunner(num_slots=1, step_s=0.05)
    engine = started(make_engine, runner)
    generation = engine.submit(GenerationRequest.of("a", 4, seed=1))
    time.sleep(0.12)
    generation.cancel("enough")
    steps = runner.num_steps
    with pytest.raises(GenerationCancelled, match="enough"):
        generation.result(30)
    assert runner.num_steps <= steps + 1
    assert engine.stats().running == engine.stats().waiting == 0


def test_who_stops_waiting_cancels(make_engine):
    generation = make_engine().submit(GenerationRequest.of("a"))  # nobody steps
    with pytest.raises(DeadlineExceeded):
        generation.result(0.01)
    assert generation.cancel_reason == "the caller stopped waiting"


def test_cancel_and_deadline_reach_a_picture_that_waits_for_pixels(make_engine):
    """Nothing runs then, so the engine sleeps: both must wake it."""
    pixels = threading.Event()
    runner = FakeRunner()
    runner.on_detokenize = lambda grids: bool(pixels.wait(60)) and None  # type: ignore[assignment]
    engine = started(make_engine, runner)
    grid = tuple(range(NUM_TOKENS))
    cancelled = engine.submit(GenerationRequest.of("a", 3, forced_tokens=grid))
    expired = engine.submit(GenerationRequest.of("b", 3, forced_tokens=grid, timeout_s=0.1))
    cancelled.cancel()
    with pytest.raises(GenerationCancelled):
        cancelled.result(30)
    with pytest.raises(DeadlineExceeded):
        expired.result(30)
    pixels.set()


def test_a_cancel_wakes_an_engine_that_sleeps(make_engine):
    pixels = threading.Event()
    runner = FakeRunner()
    runner.on_detokenize = lambda grids: bool(pixels.wait(60)) and None  # type: ignore[assignment]
    engine = started(make_engine, runner)
    cancelled = engine.submit(GenerationRequest.of("a", 3, forced_tokens=tuple(range(NUM_TOKENS))))
    until(lambda: engine._loop.detokenizer.begun is not None and not engine._loop.tracker._woken)
    time.sleep(0.05)  # it has nothing to do but to fall asleep
    cancelled.cancel()
    with pytest.raises(GenerationCancelled):
        cancelled.result(30)
    pixels.set()


def test_pictures_that_wait_for_pixels_fill_the_queue_too(make_engine):
    pixels = threading.Event()
    runner = FakeRunner(num_slots=1)
    runner.on_detokenize = lambda grids: bool(pixels.wait(60)) and None  # type: ignore[assignment]
    engine = started(make_engine, runner, max_waiting_images=1)
    engine.submit(GenerationRequest.of("a", 2, seed=1))
    until(lambda: engine.stats().detokenizing == 2)
    with pytest.raises(Overloaded):
        engine.submit(GenerationRequest.of("b", seed=1))
    pixels.set()


@pytest.mark.parametrize("timeout_s", [1e12, float("inf")])
def test_a_deadline_beyond_what_a_clock_can_wait_for_is_none(timeout_s, make_engine):
    engine = started(make_engine, FakeRunner(detokenize_s=0.1))
    patient = engine.submit(GenerationRequest.of("a", seed=1, timeout_s=timeout_s))
    assert len(patient.result(30)) == 1, "the engine slept during the pixels"
    assert len(engine.submit(GenerationRequest.of("b", seed=1)).result(30)) == 1, "and still runs"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_time_limit_must_be_positive(timeout_s):
    with pytest.raises(InvalidRequest, match="timeout_s must be positive"):
        GenerationRequest.of("a", timeout_s=timeout_s)


def test_steps_go_on_while_pixels_are_made(make_engine):
    runner = FakeRunner(num_slots=1, detokenize_s=0.4)
    engine = started(make_engine, runner)
    steps = runner.num_steps
    first = engine.submit(GenerationRequest.of("a", 2, seed=1))
    for event in first.events():
        if isinstance(event, ImageReady):
            break
    assert runner.num_steps == steps + 2 * NUM_TOKENS, "the second picture was written during the first's pixels"


def test_late_previews_are_dropped_and_never_hold_up_a_picture(make_engine):
    runner = FakeRunner(num_slots=1, step_s=0.005, detokenize_s=0.1)
    engine = started(make_engine, runner)
    generation = engine.submit(GenerationRequest.of("a", seed=1, preview_every=1))
    events = list(generation.events())
    previews = [event.tokens_done for event in events if isinstance(event, Preview)]
    assert 1 <= len(previews) <= 10 and previews == sorted(previews), "15 were due, there was time for a few"
    assert isinstance(events[-1], Done) and isinstance(events[-2], ImageReady)


def test_no_preview_of_a_picture_comes_after_it(make_engine):
    engine = started(make_engine, FakeRunner(num_slots=2, detokenize_s=0.02))
    generation = engine.submit(GenerationRequest.of("a", 4, seed=1, preview_every=1))
    finished = set()
    for event in generation.events():
        if isinstance(event, ImageReady):
            finished.add(event.image.index)
        assert not (isinstance(event, Preview) and event.index in finished)
    assert len(finished) == 4


def test_drain_finishes_what_was_accepted_and_refuses_the_rest(make_engine):
    engine = started(make_engine, FakeRunner(num_slots=1, step_s=0.005))
    generations = [engine.submit(GenerationRequest.of("a", seed=i)) for i in range(3)]
    stopper = threading.Thread(target=engine.stop, args=(20.0,))
    stopper.start()
    while engine.state == "ready":
        time.sleep(0.001)
    with pytest.raises(NotReady, match="stopping"):
        engine.submit(GenerationRequest.of("b"))
    stopper.join(20)
    assert all(isinstance(generation.terminal, Done) for generation in generations)
    assert engine.state == "stopped"


def test_a_short_drain_cancels_the_rest_and_leaves_no_thread(make_engine):
    before = threading.active_count()
    engine = started(make_engine, FakeRunner(num_slots=1, step_s=0.05))
    generations = [engine.submit(GenerationRequest.of("a", seed=i)) for i in range(3)]
    engine.stop(drain_s=0.1)
    assert all(isinstance(generation.terminal, Cancelled) for generation in generations)
    end = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.01)


def test_refusal_at_twice_the_limit_waits_for_no_step(make_engine):
    go_on = threading.Event()
    runner = FakeRunner(num_slots=2)
    engine = started(make_engine, runner, max_waiting_images=8)
    runner.on_step = lambda rows: bool(go_on.wait(60)) and None  # type: ignore[assignment]
    steps, refused = runner.num_steps, []
    for i in range(20):
        try:
            engine.submit(GenerationRequest.of("a", seed=i))
        except Overloaded as error:
            refused.append(error.retry_after_s)
    assert len(refused) == 10 and all(after_s is not None and after_s >= 1 for after_s in refused)
    assert runner.num_steps == steps, "the first is still under way"
    go_on.set()
