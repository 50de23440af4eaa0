"""The engine's promise under random schedules: a picture is what it would be alone, and every request ends once."""

from __future__ import annotations

from functools import lru_cache

from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_server.generation import Cancelled, Done
from dalle_server.request import FREE, GenerationRequest, SamplingParams
from tests.engine.conftest import NUM_TOKENS, alone, check_order, events_of, new_engine, run, same
from tests.fake_runner import FakeRunner, fake_config

samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([None, 0.5, 1.7]),
    top_k=st.sampled_from([None, 0, 1, 5]),
    top_p=st.sampled_from([None, 0.3, 0.9]),
    condition_scale=st.sampled_from([None, 1.0, 3.5]),
)
grids = st.lists(st.sampled_from([FREE, FREE, 3, 60]), min_size=NUM_TOKENS, max_size=NUM_TOKENS).map(tuple)
requests = st.builds(
    GenerationRequest.of,
    st.sampled_from(["a cat", "a dog", "two red apples"]),
    st.integers(1, 5),
    st.sampled_from([0, 1, 2**63 - 1]),
    sampling=samplings,
    negative_prompt=st.sampled_from(["", "blurry"]),
    forced_tokens=st.one_of(st.just(()), grids),
    preview_every=st.sampled_from([0, 0, 1, 5]),
    client=st.sampled_from(["", "a", "b"]),
)
# A schedule: what is submitted or cancelled before each step.
actions = st.one_of(st.none(), st.none(), requests, st.integers(0, 6))
schedules = st.lists(actions, min_size=1, max_size=30)


@lru_cache(maxsize=4096)
def _alone(prompt, num_images, seed, sampling, negative_prompt, forced_tokens):
    return alone(
        GenerationRequest.of(
            prompt, num_images, seed, sampling=sampling, negative_prompt=negative_prompt, forced_tokens=forced_tokens
        )
    )


def made_alone(request: GenerationRequest):
    return _alone(
        request.prompt,
        len(request.images),
        request.images[0].seed,
        request.sampling,
        request.negative_prompt,
        request.forced_tokens,
    )


@settings(max_examples=40, deadline=None)
@given(schedules, st.integers(1, 4), st.sampled_from([0, 1, 3]), st.booleans())
def test_pictures_are_the_same_in_any_company(schedule, num_slots, lookahead, short_of_memory):
    runner = FakeRunner(num_slots=num_slots, lookahead=lookahead)
    engine = new_engine(runner, max_waiting_images=1000)
    if short_of_memory:
        runner.on_step = _out_of_memory_once()
    generations, cancelled = [], set()
    for action in schedule:
        if isinstance(action, GenerationRequest):
            generations.append(engine.submit(action))
        elif action is not None and action < len(generations):
            if generations[action].terminal is None:
                cancelled.add(action)
            generations[action].cancel()
        engine.step()
    run(engine)
    for index, generation in enumerate(generations):
        assert isinstance(generation.terminal, Cancelled if index in cancelled else Done)
        if index not in cancelled:
            assert same(generation.terminal.images, made_alone(generation.request))
        check_order(events_of(generation))
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.detokenizing, stats.live_requests, stats.faults) == (0, 0, 0, 0, 0)


def _out_of_memory_once():
    def on_step(rows):
        nonlocal left  # type: ignore[misc]
        if left and len(rows) > 1 and rows[0].position > 2:
            left = False
            raise MemoryError

    left = True
    return on_step


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), min_size=1, max_size=6), st.integers(1, 3))
def test_no_client_waits_for_more_than_its_turn(arrivals, num_slots):
    """With c clients waiting, a client's next picture is admitted within c admissions."""
    engine = new_engine(FakeRunner(fake_config(grid_side=2), num_slots=num_slots), max_waiting_images=1000)
    waiting = dict.fromkeys("abc", 0)
    for client, num_images in arrivals:
        engine.submit(GenerationRequest.of("a", num_images, seed=1, client=client))
        waiting[client] += num_images
    admitted: list[str] = []
    tracker = engine._loop.tracker
    admit_next = tracker.admit_next

    def spy():
        result = admit_next()
        if result:
            admitted.append(result[0].group.client)
        return result

    tracker.admit_next = spy
    run(engine)
    since = dict.fromkeys("abc", 0)
    for client in admitted:
        contenders = [other for other, left in waiting.items() if left]
        for other in contenders:
            since[other] += 1
            assert since[other] <= len({c for c, _ in arrivals}), f"{other} waited too long in {admitted}"
        since[client] = 0
        waiting[client] -= 1
    assert not any(waiting.values())
