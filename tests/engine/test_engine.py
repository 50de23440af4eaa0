"""One engine without threads: events, order, sharing, cancels and deadlines, forced tokens."""

import gc
import weakref

import numpy as np
import pytest

from dalle_server.errors import InvalidRequest, NotReady, Overloaded
from dalle_server.generation import Cancelled, Done, Failed, ImageReady, Preview, Progress, Queued, Started
from dalle_server.request import FREE, GenerationRequest, SamplingParams
from tests.engine.conftest import NUM_TOKENS, alone, check_order, events_of, run, same
from tests.fake_runner import FakeRunner, FakeTokenizer


def test_events_of_one_request_in_order(make_engine):
    engine = make_engine()
    generation = engine.submit(GenerationRequest.of("a cat", 2, seed=1))
    run(engine)
    events = events_of(generation)
    assert [type(event) for event in events] == [
        Queued,
        Started,
        *[Progress] * NUM_TOKENS,
        ImageReady,
        ImageReady,
        Done,
    ]
    assert [event.tokens_done for event in events if isinstance(event, Progress)] == list(range(2, 33, 2))
    assert [image.key.index for image in events[-1].images] == [0, 1]
    assert events[-1].images[0].pixels.shape == (32, 32, 3)


def test_what_changes_a_picture_and_what_does_not():
    base = GenerationRequest.of("a cat", seed=1)
    assert same(alone(base), alone(GenerationRequest.of("a cat", seed=1, preview_every=3, client="somebody")))
    for other in (
        GenerationRequest.of("a dog", seed=1),
        GenerationRequest.of("a cat", seed=2),
        GenerationRequest.of("a cat", seed=1, negative_prompt="blurry"),
        GenerationRequest.of("a cat", seed=1, sampling=SamplingParams(condition_scale=3.0)),
    ):
        assert not same(alone(base), alone(other))


def test_pictures_of_one_prompt_share_one_encoder_pass(make_engine):
    runner = FakeRunner(num_slots=2)
    engine = make_engine(runner)
    encoded = []
    runner.on_encode = encoded.extend
    engine.submit(GenerationRequest.of("a cat", 5, seed=1))
    engine.submit(GenerationRequest.of("a cat", 2, seed=2))
    run(engine)
    assert len(encoded) == 2, "the prompt and the empty text"


def test_a_slot_is_free_in_the_step_that_writes_the_last_token(make_engine):
    runner = FakeRunner(num_slots=1)
    engine = make_engine(runner)
    engine.submit(GenerationRequest.of("a", seed=1))
    engine.submit(GenerationRequest.of("b", seed=1))
    batches = []
    runner.on_step = lambda rows: batches.append([row.position for row in rows])
    run(engine)
    assert batches == [[position] for position in [*range(NUM_TOKENS)] * 2], "no step without a picture"


def test_requests_join_and_leave_between_tokens(make_engine):
    runner = FakeRunner(num_slots=2)
    engine = make_engine(runner)
    batches = []
    runner.on_step = lambda rows: batches.append([(row.slot, row.position) for row in rows])
    engine.submit(GenerationRequest.of("a", seed=1))
    engine.step()
    engine.submit(GenerationRequest.of("b", seed=1))
    engine.step()
    assert batches == [[(0, 0)], [(0, 1), (1, 0)]]


def test_a_large_request_delays_others_by_one_picture_only(make_engine):
    engine = make_engine(FakeRunner(num_slots=1))
    order = []
    engine.observer.on_finished = lambda generation, event: order.append(generation.request.client)
    many = engine.submit(GenerationRequest.of("a", 16, seed=1, client="many"))
    engine.step()
    engine.submit(GenerationRequest.of("b", 1, seed=1, client="other"))
    engine.submit(GenerationRequest.of("c", 1, seed=1, client="third"))
    run(engine)
    assert order == ["other", "third", "many"]
    assert len(many.result()) == 16


def test_positions_count_down_to_the_start(make_engine):
    engine = make_engine(FakeRunner(num_slots=1))
    engine.submit(GenerationRequest.of("a", 2, seed=1, client="a"))
    engine.step()
    last = engine.submit(GenerationRequest.of("b", 1, seed=1, client="b"))
    run(engine)
    assert [e.position for e in events_of(last) if isinstance(e, Queued)] == [1, 0]


def test_who_waits_hears_of_a_cancel_before_it(make_engine):
    engine = make_engine(FakeRunner(num_slots=1))
    engine.submit(GenerationRequest.of("a", seed=1))
    engine.step()
    before, last = (engine.submit(GenerationRequest.of(prompt, n, seed=1)) for prompt, n in (("b", 2), ("c", 1)))
    before.cancel()
    engine.step()
    told = last.events(poll_s=0.001)
    assert [next(told), next(told), next(told)] == [Queued(1), Queued(0), None]


def test_the_last_token_is_told_however_seldom_tokens_are(make_engine):
    engine = make_engine(progress_every_s=3600.0)
    generation = engine.submit(GenerationRequest.of("a", 2, seed=1))
    run(engine)
    assert [e.tokens_done for e in events_of(generation) if isinstance(e, Progress)][-1] == 2 * NUM_TOKENS


def test_a_full_queue_refuses_at_once_and_says_when_to_return(make_engine):
    engine = make_engine(FakeRunner(num_slots=2), max_waiting_images=3)
    engine.submit(GenerationRequest.of("a", 4, seed=1))
    with pytest.raises(Overloaded) as refused:
        engine.submit(GenerationRequest.of("b", 2, seed=1))
    assert (refused.value.retry_after_s or 0) >= 1
    engine.submit(GenerationRequest.of("b", 1, seed=1))
    with pytest.raises(InvalidRequest, match="num_images must be at most 5"):
        engine.submit(GenerationRequest.of("b", 6, seed=1))


def test_a_full_queue_refuses_before_it_reads_the_text(make_engine, monkeypatch):
    """Reading a text costs processor time: it comes after a place is held, and the place is freed when it fails."""
    engine = make_engine(FakeRunner(num_slots=1), max_waiting_images=1)
    read: list[str] = []

    def encode(tokenizer: FakeTokenizer, prompt: str):
        read.append(prompt)
        if prompt == "unreadable":
            raise InvalidRequest("unreadable", param="prompt")
        if prompt == "a":  # while this one is read, its places are taken
            with pytest.raises(Overloaded):
                engine.submit(GenerationRequest.of("meanwhile", 1, seed=1))
        return original(tokenizer, prompt)

    original = FakeTokenizer.encode
    monkeypatch.setattr(FakeTokenizer, "encode", encode)
    with pytest.raises(InvalidRequest):
        engine.submit(GenerationRequest.of("unreadable", 2, seed=1))
    engine.submit(GenerationRequest.of("a", 2, seed=1))
    with pytest.raises(Overloaded):
        engine.submit(GenerationRequest.of("b", 1, seed=1))
    assert [prompt for prompt in read if prompt] == ["unreadable", "a"]


def test_a_place_is_held_for_a_request_that_has_yet_to_be_read(make_engine):
    engine = make_engine(FakeRunner(num_slots=1), max_waiting_images=1)
    held, other = engine.hold(), engine.hold()
    for refused in (engine.hold, lambda: engine.submit(GenerationRequest.of("b", 1, seed=1))):
        with pytest.raises(Overloaded):
            refused()
    other.give_back()
    other.give_back()  # once is enough
    engine.submit(GenerationRequest.of("a", 2, seed=1), held)  # its own place is one of the two
    held.give_back()
    with pytest.raises(Overloaded):
        engine.hold()
    run(engine)
    engine.hold()
    engine.stop()
    with pytest.raises(NotReady):
        engine.hold()


def test_cancel_frees_the_slot_before_the_next_token(make_engine):
    engine = make_engine(FakeRunner(num_slots=1))
    first = engine.submit(GenerationRequest.of("a", 3, seed=1))
    second = engine.submit(GenerationRequest.of("b", seed=1))
    engine.step()
    first.cancel("no longer wanted")
    engine.step()
    assert first.terminal == Cancelled("no longer wanted")
    assert engine.stats().running == 1 and engine.stats().waiting == 0
    run(engine)
    assert same(second.result(), alone(GenerationRequest.of("b", seed=1)))


def test_a_deadline_ends_running_and_waiting_requests(make_engine):
    engine = make_engine(FakeRunner(num_slots=1, step_s=0.01))
    running = engine.submit(GenerationRequest.of("a", seed=1, timeout_s=0.03))
    waiting = engine.submit(GenerationRequest.of("b", seed=1, timeout_s=0.03))
    run(engine)
    for generation in (running, waiting):
        assert isinstance(generation.terminal, Failed) and generation.terminal.error.status == 504


def test_forced_tokens_are_kept_and_the_rest_is_drawn():
    forced = tuple(7 if i % 3 else FREE for i in range(NUM_TOKENS))
    (image,) = alone(GenerationRequest.of("a", seed=1, forced_tokens=forced))
    assert all(token == given for token, given in zip(image.tokens, forced, strict=True) if given != FREE)
    assert len(set(image.tokens[::3])) > 1


def test_a_whole_grid_goes_straight_to_pixels(make_engine):
    request = GenerationRequest.of("a", seed=1)
    (image,) = alone(request)
    runner = FakeRunner()
    engine = make_engine(runner)
    steps_before = runner.num_steps
    replay = engine.submit(GenerationRequest.of("a", seed=1, forced_tokens=tuple(image.tokens.tolist())))
    run(engine)
    assert same(replay.result(), [image]) and runner.num_steps == steps_before


@pytest.mark.parametrize("forced", [(1, 2), (64,) * NUM_TOKENS, (-2,) * NUM_TOKENS])
def test_impossible_forced_tokens_are_refused(forced, make_engine):
    with pytest.raises(InvalidRequest) as refused:
        make_engine().submit(GenerationRequest.of("a", forced_tokens=forced))
    assert refused.value.param == "forced_tokens"


def test_previews_show_the_written_part_on_grey(make_engine):
    engine = make_engine()
    generation = engine.submit(GenerationRequest.of("a", seed=1, preview_every=4))
    run(engine)
    previews = [event for event in events_of(generation) if isinstance(event, Preview)]
    assert [preview.tokens_done for preview in previews] == [4, 8, 12]
    (final,) = generation.terminal.images
    for preview in previews:
        rows = preview.tokens_done // 4 * 8
        assert np.array_equal(preview.pixels[:rows], final.pixels[:rows])
        assert (preview.pixels[rows:] == 127).all()


def test_previews_can_be_switched_on_while_it_runs(make_engine):
    engine = make_engine()
    generation = engine.submit(GenerationRequest.of("a", seed=1))
    for _ in range(9):
        engine.step()
    generation.want_previews(5)
    run(engine)
    assert [event.tokens_done for event in events_of(generation) if isinstance(event, Preview)] == [10, 15]


def test_stop_ends_what_it_does_not_wait_for_and_refuses_the_rest(make_engine):
    runner = FakeRunner(num_slots=1)
    engine = make_engine(runner)
    generation = engine.submit(GenerationRequest.of("a", 2, seed=1))
    engine.step()
    engine.stop()
    assert isinstance(generation.terminal, Cancelled) and runner.closed
    with pytest.raises(NotReady):
        engine.submit(GenerationRequest.of("a"))
    drained = make_engine()
    generation = drained.submit(GenerationRequest.of("a", 2, seed=1))
    drained.stop(drain_s=10)
    assert len(generation.result()) == 2


def test_every_event_list_ends_with_its_one_terminal_event(make_engine):
    engine = make_engine(FakeRunner(num_slots=2))
    generations = [engine.submit(GenerationRequest.of("a", i, seed=i)) for i in (1, 2, 3)]
    engine.step()
    generations[1].cancel()
    run(engine)
    for generation in generations:
        check_order(events_of(generation))
    assert engine.stats().live_requests == engine.stats().running == 0


@pytest.mark.parametrize("outcome", [Done, Cancelled, Failed])
def test_an_ended_request_is_freed_without_the_collector(outcome, make_engine):
    """A full pass of Python's cycle collector may be a minute away, and pictures in a cycle wait for it."""
    engine = make_engine()
    gc.disable()
    try:
        generation = engine.submit(GenerationRequest.of("a cat", 2, timeout_s=1e-9 if outcome is Failed else None))
        if outcome is Cancelled:
            engine.step()
            generation.cancel()
        run(engine)
        assert isinstance(generation.terminal, outcome)
        freed = weakref.ref(generation)
        del generation
        assert freed() is None
    finally:
        gc.enable()
