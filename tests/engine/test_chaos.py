"""Whatever fails, wherever: every accepted request ends exactly once, and a picture that is delivered is right."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_server.errors import NotReady
from dalle_server.generation import ImageReady
from dalle_server.request import FREE, GenerationRequest, ImageKey
from tests.engine.conftest import alone, events_of, new_engine
from tests.fake_runner import FakeRunner

ERRORS = [None, None, None, None, MemoryError, RuntimeError]
PROMPTS = ["a", "b", "a whole grid"]


class Saboteur:
    """Hooks of a fake runner that fail as `plan` says, call by call."""

    def __init__(self, plan: list[type[Exception] | None]):
        self.plan = plan
        self.calls = 0

    def __call__(self, _: object) -> None:
        self.calls += 1
        error = self.plan[self.calls % len(self.plan)]
        if error is not None:
            raise error("injected")


def pictures_alone(request: GenerationRequest) -> dict[ImageKey, bytes]:
    return {image.key: image.pixels.tobytes() for image in alone(request)}


def request(kind: int, num_images: int, seed: int) -> GenerationRequest:
    forced = tuple(int(t) for t in np.arange(16) % 7) if kind == 2 else (FREE,) * 12 + (3,) * 4 if kind == 1 else ()
    return GenerationRequest.of(
        PROMPTS[kind], num_images, seed, forced_tokens=forced, preview_every=3, client=str(seed % 2)
    )


EXPECTED = {(kind, seed): pictures_alone(request(kind, 4, seed)) for kind in range(3) for seed in range(3)}

plans = st.lists(st.sampled_from(ERRORS), min_size=7, max_size=25)
submissions = st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 2))
schedules = st.lists(st.one_of(st.none(), submissions, st.integers(0, 5)), min_size=3, max_size=25)


@settings(max_examples=60, deadline=None)
@given(schedules, plans, plans, plans, plans, st.sampled_from([0, 1]), st.booleans())
def test_every_request_ends_once_whatever_fails(
    schedule, step_plan, encode_plan, admit_plan, pixel_plan, lookahead, renew
):
    runner = FakeRunner(num_slots=3, lookahead=lookahead)
    fatal = []
    engine = new_engine(
        runner,
        max_waiting_images=1000,
        make_runner=(lambda: FakeRunner(num_slots=3)) if renew else None,
        on_fatal=lambda: fatal.append(1),
    )
    runner.on_step = Saboteur(step_plan)
    runner.on_encode = Saboteur([error and MemoryError for error in encode_plan])
    runner.on_admit = Saboteur([error and MemoryError for error in admit_plan])
    runner.on_detokenize = Saboteur(pixel_plan)
    runner.nan_at = {ImageKey(1, 1): 4}
    accepted = []
    for action in schedule:
        if isinstance(action, tuple):
            try:
                accepted.append((action, engine.submit(request(*action))))
            except NotReady:
                assert engine.state == "failed"
        elif action is not None and action < len(accepted):
            accepted[action][1].cancel()
        engine.step()
    while engine.step():
        pass
    for (kind, _, seed), generation in accepted:
        for event in events_of(generation):
            if isinstance(event, ImageReady):
                assert event.image.pixels.tobytes() == EXPECTED[kind, seed][event.image.key]
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.detokenizing, stats.live_requests) == (0, 0, 0, 0)
    assert sum(stats.requests.values()) == len(accepted)
    assert (engine.state == "failed") == bool(fatal)
