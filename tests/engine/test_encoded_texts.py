"""Texts are read beside the steps: what runs goes on, a short one does not wait for a long one; bytes are bounded."""

import numpy as np
import pytest

from dalle_server.engine.decode_loop import FEWEST_READ, MOST_READ
from dalle_server.engine.encoded_texts import EncodedTexts
from dalle_server.engine.runners.base import TextTokens
from dalle_server.engine.sequence import ImageGroup
from dalle_server.generation import Cancelled, Done, Failed, Generation, Queued, Started
from dalle_server.request import GenerationRequest
from tests.engine.conftest import NUM_TOKENS, alone, check_order, events_of, run, same
from tests.fake_runner import FakeRunner, FakeText

LONG = "a prompt that goes on and on, and does not come to its end"  # a token a letter, and two
LONG_TOKENS = len(LONG) + 2


class Watch:
    """What each step of the engine did: tokens read, and rows written."""

    def __init__(self, runner: FakeRunner):
        self.read: list[int] = [0]
        self.written: list[int] = [0]
        self.order: list[int] = []  # lengths of the texts, piece by piece
        runner.on_read, runner.on_step = self._read, lambda rows: self.written.__setitem__(-1, len(rows))

    def _read(self, text, num_tokens):
        self.read[-1] += min(num_tokens, text.text.length - text.num_read)
        self.order.append(text.text.length)

    def step(self, engine) -> bool:
        self.read.append(0)
        self.written.append(0)
        return engine.step()


@pytest.mark.parametrize("lookahead", [0, 1])
def test_running_pictures_go_on_while_prompts_are_read(lookahead, make_engine):
    runner = FakeRunner(num_slots=4, lookahead=lookahead)
    engine = make_engine(runner)
    watch = Watch(runner)
    first = engine.submit(GenerationRequest.of("a", seed=1))
    watch.step(engine)
    assert watch.written[-1] == 1
    more = [engine.submit(GenerationRequest.of(f"{LONG} {n}", seed=2)) for n in range(2)]
    while len(watch.written) < 10:
        watch.step(engine)
    total = 2 * (LONG_TOKENS + 2)
    assert watch.read[2:] == [FEWEST_READ] * (total // FEWEST_READ) + [total % FEWEST_READ]
    assert watch.written[2:] == [1] * 6 + [2, 3], (
        "none without the first one's; a picture begins in the step that reads its end"
    )
    run(engine)
    for generation in (first, *more):
        check_order(events_of(generation))
        assert same(generation.terminal.images, alone(generation.request))


def test_as_much_is_read_as_a_step_has_rows(make_engine):
    runner = FakeRunner(num_slots=16)
    engine = make_engine(runner)
    engine.submit(GenerationRequest.of("a", 12, seed=1))
    engine.step()
    watch = Watch(runner)
    engine.submit(GenerationRequest.of(LONG, seed=1))
    watch.step(engine)
    assert watch.read[-1] == 2 * 12 > FEWEST_READ


def test_where_nothing_runs_a_step_is_bounded_too(make_engine):
    runner = FakeRunner(num_slots=4)
    engine = make_engine(runner)
    watch = Watch(runner)
    generations = [engine.submit(GenerationRequest.of(f"{LONG} {n}", seed=2)) for n in range(4)]
    watch.step(engine)
    assert watch.read[-1] == MOST_READ and watch.written[-1] <= 1
    run(engine)
    assert all(isinstance(generation.terminal, Done) for generation in generations)


def test_a_short_prompt_does_not_wait_for_long_ones(make_engine):
    runner = FakeRunner(num_slots=4)
    engine = make_engine(runner)
    engine.submit(GenerationRequest.of("a", seed=1))
    engine.step()
    watch = Watch(runner)
    long = [engine.submit(GenerationRequest.of(f"{LONG} {n}", seed=2, client="many")) for n in range(2)]
    for _ in range(2):
        watch.step(engine)
    short = engine.submit(GenerationRequest.of("b", seed=3, client="one"))
    watch.step(engine)
    watch.step(engine)
    assert any(isinstance(event, Started) for event in _so_far(short))
    assert not any(isinstance(event, Started) for generation in long for event in _so_far(generation))
    run(engine)
    assert same(short.result(), alone(short.request))


def _so_far(generation: Generation) -> list:
    found = []
    for event in generation.events(poll_s=0.001):
        if event is None:
            break
        found.append(event)
    return found


def test_who_has_a_slot_waits_for_nobody_while_its_text_is_read(make_engine):
    engine = make_engine(FakeRunner(num_slots=2))
    engine.submit(GenerationRequest.of("a", 2, seed=1))
    engine.step()
    waits = engine.submit(GenerationRequest.of(LONG, seed=1))
    run(engine)
    events = events_of(waits)
    assert [event.position for event in events if isinstance(event, Queued)] == [0]
    check_order(events)


def test_a_cancel_while_its_text_is_read_frees_the_slot_and_the_text(make_engine):
    runner = FakeRunner(num_slots=2)
    engine = make_engine(runner)
    engine.submit(GenerationRequest.of("a", seed=1))
    engine.step()
    leaves = engine.submit(GenerationRequest.of(LONG, seed=1))
    engine.step()
    texts = engine._loop._texts
    held = texts.nbytes
    leaves.cancel("enough")
    watch = Watch(runner)
    watch.step(engine)
    assert leaves.terminal == Cancelled("enough") and watch.read[-1] == 0 and watch.written[-1] == 1
    assert texts.nbytes < held and engine.stats().running == 1
    run(engine)


def test_a_picture_evicted_while_its_text_is_read_comes_later(make_engine):
    runner = FakeRunner(num_slots=2)
    engine = make_engine(runner)
    first = engine.submit(GenerationRequest.of("a", seed=1))
    engine.step()
    second = engine.submit(GenerationRequest.of(LONG, seed=1))
    engine.step()
    engine._loop.tracker.shrink(1)
    run(engine)
    for generation in (first, second):
        assert same(generation.result(), alone(generation.request))


@pytest.mark.parametrize("call", ["on_encode", "on_read"])
def test_no_memory_for_a_text_costs_the_first_who_waits_for_it(call, make_engine):
    """The second request of the same prompt comes to its picture, when there is memory again."""
    runner = FakeRunner(num_slots=4)
    engine = make_engine(runner)
    failures = [MemoryError()]

    def fail(*_):
        if failures:
            raise failures.pop()

    setattr(runner, call, fail)
    first, second = (engine.submit(GenerationRequest.of("a cat", 2, seed=seed)) for seed in (1, 2))
    run(engine)
    assert isinstance(first.terminal, Failed) and "memory" in first.terminal.error.message
    assert same(second.result(), alone(second.request)) and engine.stats().faults == 0


def make_texts(runner: FakeRunner, capacity_bytes: int) -> tuple[EncodedTexts, list]:
    handed_over: list = []
    texts = EncodedTexts(runner, lambda *what: handed_over.append(what), lambda group: None, capacity_bytes)
    return texts, handed_over


def picture_of(length: int, slot: int = 0, first: int = 0):
    """A waiting picture whose two texts have so many tokens."""
    request = GenerationRequest.of("a", seed=1)
    conditional, unconditional = (TextTokens(np.full(length, id, np.int32), length) for id in (first, 9))
    sequence = ImageGroup.of(Generation(request, request.sampling), conditional, unconditional, NUM_TOKENS).sequences[0]
    sequence.slot = slot
    return sequence


def test_bytes_are_bounded_by_what_texts_hold():
    texts, handed_over = make_texts(FakeRunner(), capacity_bytes=100_000)  # of the fake's 1000 a token
    for first in range(10):
        texts.add(picture_of(20, first=first), 0)
        texts.read(1000)
        assert texts.nbytes <= 100_000
    assert len(handed_over) == 10 and texts.nbytes == 100_000


def test_the_least_recently_used_goes_first_and_the_unconditional_one_is_kept_by_its_length():
    runner = FakeRunner()
    read: list[tuple[int, int]] = []
    runner.on_encode = lambda new: read.extend((text.length, int(text.ids[0])) for text in new)
    texts, _ = make_texts(runner, capacity_bytes=80_000)
    for length, first in [(20, 0), (20, 1), (20, 2), (20, 3), (10, 0), (20, 3), (20, 0)]:
        texts.add(picture_of(length, first=first), 0)
        texts.read(1000)
    # (20, 9) and (10, 9) are without a prompt; the first prompt had gone when it came again, the fourth had not.
    assert read == [(20, 0), (20, 9), (20, 1), (20, 2), (20, 3), (10, 0), (10, 9), (20, 0)]


def test_what_waiting_pictures_need_stays_however_large_it_is():
    texts, handed_over = make_texts(FakeRunner(), capacity_bytes=10)
    for slot in range(2):
        texts.add(picture_of(20, slot, first=slot), slot)
    texts.read(30)
    assert not handed_over and texts.nbytes > 10
    texts.read(30)
    assert len(handed_over) == 2 and texts.nbytes == 0


def test_what_is_kept_costs_running_pictures_nothing(monkeypatch):
    """A server that has seen thousands of prompts is as fast as a fresh one."""
    texts, handed_over = make_texts(FakeRunner(), capacity_bytes=10**9)
    asked: list[int] = []

    def nbytes(text: FakeText) -> int:
        asked.append(1)
        return 1000 * text.text.length

    monkeypatch.setattr(FakeText, "nbytes", property(nbytes))
    for first in range(10, 60):
        texts.add(picture_of(20, first=first), 0)
        texts.read(1000)
    assert len(handed_over) == 50 and len(asked) <= 50 * 51  # each is looked at once for a new one
    asked.clear()
    texts.read(1000)
    assert not asked
