"""What goes wrong: every waiter hears of it at once, one restart, and nobody else's picture changes."""

import threading
import time
import weakref

import pytest

from dalle_server.engine import engine as engine_module
from dalle_server.errors import EngineDown, GenerationFailed, InvalidRequest, NotReady
from dalle_server.generation import Done, Failed
from dalle_server.request import GenerationRequest
from tests.engine.conftest import NUM_TOKENS, alone, run, same
from tests.fake_runner import FakeRunner, FakeTokenizer
from tests.web.waits import until


class BrokenAt:
    """An on_step hook that raises (or blocks) at the k-th step from now, once or for ever."""

    def __init__(self, k, error=None, *, times=1, hang=None):
        self.k, self.error, self.times, self.hang = k, error or RuntimeError("injected"), times, hang
        self.calls = 0

    def __call__(self, rows):
        self.calls += 1
        if self.k < self.calls <= self.k + self.times:
            if self.hang is not None:
                self.hang.wait(20)
                return
            raise self.error


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("k", range(NUM_TOKENS + 4))
def test_a_fault_at_any_step_ends_every_live_request_and_restarts_once(k, lookahead, make_engine):
    runner = FakeRunner(num_slots=2, lookahead=lookahead)
    engine = make_engine(runner)
    runner.on_step = BrokenAt(k)
    two = engine.submit(GenerationRequest.of("a", 2, seed=1, client="a"))
    one = engine.submit(GenerationRequest.of("b", 1, seed=2, client="b"))
    run(engine)
    assert isinstance(two.terminal, Failed), "its second picture is running or waiting at every k"
    assert two.terminal.error.status == 500 and "try again" in two.terminal.error.message
    assert isinstance(one.terminal, Failed if k < NUM_TOKENS else Done)
    assert engine.state == "ready" and engine.stats().faults == 1 and engine.stats().running == 0
    again = engine.submit(GenerationRequest.of("a", 2, seed=1))
    run(engine)
    assert same(again.result(), alone(GenerationRequest.of("a", 2, seed=1))), "as good as new"


def test_a_second_fault_is_fatal(make_engine):
    runner, fatal = FakeRunner(), []
    engine = make_engine(runner, on_fatal=lambda: fatal.append(engine.state))  # type: ignore[has-type]
    for expected in ("ready", "failed"):
        runner.on_step = BrokenAt(3)
        generation = engine.submit(GenerationRequest.of("a"))
        run(engine)
        assert isinstance(generation.terminal, Failed) and engine.state == expected
    assert fatal == ["failed"]
    with pytest.raises(EngineDown, match="failed"):
        engine.submit(GenerationRequest.of("a"))


def test_a_fault_long_ago_is_pardoned(make_engine, monkeypatch):
    monkeypatch.setattr(engine_module, "FAULT_PARDON_S", 0.0)
    runner, fatal = FakeRunner(), []
    engine = make_engine(runner, on_fatal=lambda: fatal.append(True))
    for _ in range(3):
        runner.on_step = BrokenAt(3)
        engine.submit(GenerationRequest.of("a"))
        run(engine)
        time.sleep(0.002)  # longer than the clock's finest step
    assert engine.state == "ready" and engine.stats().faults == 3 and fatal == []


def test_restart_makes_a_new_runner_where_it_can(make_engine):
    first, second = FakeRunner(), FakeRunner()
    engine = make_engine(first, make_runner=lambda: second)
    first.on_step = BrokenAt(0, times=10**6)
    engine.submit(GenerationRequest.of("a"))
    run(engine)
    assert first.closed and engine.state == "ready"
    generation = engine.submit(GenerationRequest.of("a", seed=1))
    run(engine)
    assert same(generation.result(), alone(GenerationRequest.of("a", seed=1)))


def test_a_text_that_was_read_before_a_restart_is_refused(make_engine, monkeypatch):
    runner = FakeRunner()
    engine = make_engine(runner, make_runner=FakeRunner)
    encode = FakeTokenizer.encode

    def fail_meanwhile(tokenizer, prompt):
        if prompt == "slow":
            runner.on_step = BrokenAt(0)
            engine.submit(GenerationRequest.of("a"))
            run(engine)
        return encode(tokenizer, prompt)

    monkeypatch.setattr(FakeTokenizer, "encode", fail_meanwhile)
    with pytest.raises(NotReady):
        engine.submit(GenerationRequest.of("slow"))


def test_a_restart_leaves_one_detokenizer(make_engine):
    first = FakeRunner()
    engine = make_engine(first, make_runner=FakeRunner)
    engine.start()
    first.on_step = BrokenAt(0)
    with pytest.raises(GenerationFailed):
        engine.submit(GenerationRequest.of("a")).result(30)
    until(lambda: engine.state == "ready")
    until(lambda: sum(thread.name == "detokenizer" for thread in threading.enumerate()) == 1)


class FailsWithTensors:
    """An on_step hook that fails once, in a frame that holds something large."""

    class Tensor:
        pass

    def __init__(self, error):
        self.error, self.tensor = error, None

    def __call__(self, rows):
        if self.tensor is None:
            tensor = self.Tensor()
            self.tensor = weakref.ref(tensor)
            raise self.error()
        assert self.tensor() is None, "held while the smaller step needs the memory"


def test_what_the_broken_runner_held_is_free_before_a_new_one_is_made(make_engine, monkeypatch):
    def make_runner():
        held_at_restart.append(first.on_step.tensor())  # type: ignore[attr-defined]
        return FakeRunner()

    held_at_restart = []
    monkeypatch.setattr(engine_module.logger, "disabled", True)  # pytest keeps the records, and with them the frames
    first = FakeRunner()
    engine = make_engine(first, make_runner=make_runner)
    first.on_step = FailsWithTensors(RuntimeError)
    engine.submit(GenerationRequest.of("a"))
    run(engine)
    assert held_at_restart == [None]


def test_what_a_step_without_memory_held_is_free_before_the_smaller_one(make_engine):
    runner = FakeRunner(num_slots=2)
    engine = make_engine(runner)
    runner.on_step = FailsWithTensors(MemoryError)
    generation = engine.submit(GenerationRequest.of("a", 2, seed=1))
    run(engine)
    assert isinstance(generation.terminal, Done)


def test_a_new_runner_may_have_fewer_slots(make_engine):
    first = FakeRunner(num_slots=8)
    engine = make_engine(first, make_runner=lambda: FakeRunner(num_slots=2), max_waiting_images=3)
    first.on_step = BrokenAt(0)
    engine.submit(GenerationRequest.of("a"))
    run(engine)
    assert engine.stats().num_slots == 2
    with pytest.raises(InvalidRequest, match="num_images must be at most 5"):
        engine.submit(GenerationRequest.of("a", 6))


def test_a_stop_during_a_restart_closes_what_the_restart_made(make_engine):
    first, second, begun, go_on = FakeRunner(), FakeRunner(), threading.Event(), threading.Event()

    def make_runner():
        begun.set()
        go_on.wait(30)
        return second

    engine = make_engine(first, make_runner=make_runner)
    first.on_step = BrokenAt(0)
    engine.start()
    engine.submit(GenerationRequest.of("a"))
    assert begun.wait(30)
    threading.Timer(0.2, go_on.set).start()
    engine.stop()
    assert engine.state == "stopped" and first.closed and second.closed
    until(lambda: not {"engine", "detokenizer"} & {thread.name for thread in threading.enumerate()})


def test_a_restart_that_hangs_is_fatal(make_engine, monkeypatch):
    monkeypatch.setattr(engine_module, "RESTART_TIMEOUT_S", 0.2)
    first, second, fatal, go_on = FakeRunner(), FakeRunner(), threading.Event(), threading.Event()

    def make_runner():
        go_on.wait(20)
        return second

    engine = make_engine(first, make_runner=make_runner, on_fatal=fatal.set)
    first.on_step = BrokenAt(0)
    engine.start()
    engine.submit(GenerationRequest.of("a"))
    assert fatal.wait(30) and engine.state == "failed"
    go_on.set()
    until(lambda: second.closed)
    assert engine.state == "failed"


def test_a_restart_that_fails_is_fatal(make_engine):
    def no_runner():
        raise RuntimeError("the device is gone")

    fatal = []
    runner = FakeRunner()
    engine = make_engine(runner, make_runner=no_runner, on_fatal=lambda: fatal.append(True))
    runner.on_step = BrokenAt(0)
    engine.submit(GenerationRequest.of("a"))
    run(engine)
    assert engine.state == "failed" and fatal == [True]


def test_waiters_hear_of_a_fault_before_there_is_a_new_runner(make_engine):
    runner, go_on = FakeRunner(num_slots=1, step_s=0.001), threading.Event()
    engine = make_engine(runner, make_runner=lambda: go_on.wait(60) and FakeRunner())
    engine.start()
    runner.on_step = BrokenAt(5)
    generations = [engine.submit(GenerationRequest.of("a", 2, seed=i)) for i in range(4)]
    for generation in generations:
        with pytest.raises(GenerationFailed):
            generation.result(30)
    assert engine.state != "ready"
    go_on.set()
    until(lambda: engine.state == "ready")


def test_a_hung_step_is_abandoned_and_a_new_runner_goes_on(make_engine):
    hang = threading.Event()
    first, second = FakeRunner(), FakeRunner()
    engine = make_engine(first, make_runner=lambda: second, step_timeout_s=1.0)
    first.on_step = BrokenAt(5, hang=hang)
    engine.start()
    generation = engine.submit(GenerationRequest.of("a", 2, seed=1))
    with pytest.raises(GenerationFailed):
        generation.result(30)
    until(lambda: engine.state == "ready")
    again = engine.submit(GenerationRequest.of("a", 2, seed=1))
    assert same(again.result(30), alone(GenerationRequest.of("a", 2, seed=1)))
    hang.set()  # the abandoned thread returns, and must change nothing
    third = engine.submit(GenerationRequest.of("b", 2, seed=1))
    assert same(third.result(30), alone(GenerationRequest.of("b", 2, seed=1)))
    until(lambda: sum(thread.name == "engine" for thread in threading.enumerate()) == 1)


def test_hung_pixels_leave_no_thread_of_the_abandoned_loop_asleep(make_engine):
    hang = threading.Event()
    first, second = FakeRunner(), FakeRunner()
    engine = make_engine(first, make_runner=lambda: second, step_timeout_s=1.0)
    first.on_detokenize = lambda grids: bool(hang.wait(20)) and None  # type: ignore[assignment]
    engine.start()
    with pytest.raises(GenerationFailed):
        engine.submit(GenerationRequest.of("a", seed=1)).result(30)
    until(lambda: engine.state == "ready")
    until(lambda: sum(thread.name == "engine" for thread in threading.enumerate()) == 1)
    hang.set()


@pytest.mark.parametrize("where", ["on_step", "on_detokenize", "on_encode"])
def test_a_hung_runner_without_a_successor_is_fatal(where, make_engine):
    hang, fatal = threading.Event(), threading.Event()
    runner = FakeRunner()
    engine = make_engine(runner, step_timeout_s=1.0, on_fatal=fatal.set)
    setattr(runner, where, lambda _: hang.wait(20) and None)
    engine.start()
    generation = engine.submit(GenerationRequest.of("a", seed=1))
    with pytest.raises(GenerationFailed):
        generation.result(30)
    assert fatal.wait(30) and engine.state == "failed"
    hang.set()


def test_a_failing_observer_stops_nothing(make_engine):
    engine = make_engine()

    def fail(*args):
        raise ValueError("injected")

    engine.observer.on_step = engine.observer.on_finished = fail
    generation = engine.submit(GenerationRequest.of("a", seed=1))
    run(engine)
    assert isinstance(generation.terminal, Done)


def test_one_fault_is_fatal_once(make_engine, monkeypatch):
    monkeypatch.setattr(engine_module, "RESTART_TIMEOUT_S", 0.2)
    fatal, go_on = [], threading.Event()

    def make_runner():
        go_on.wait(20)
        raise RuntimeError("the device is gone")

    first = FakeRunner()
    engine = make_engine(first, make_runner=make_runner, on_fatal=lambda: fatal.append(True))
    first.on_step = BrokenAt(0)
    engine.start()
    engine.submit(GenerationRequest.of("a"))
    until(lambda: bool(fatal))
    go_on.set()  # the restart that hung fails now, too
    engine._thread.join(10)
    assert fatal == [True]
