"""Turns, positions and the rehearsal of the schedule, without any runner."""

import numpy as np

from dalle_server.engine.fair_queue import FairQueue
from dalle_server.engine.runners.base import StepResult, TextTokens
from dalle_server.engine.scheduler import Scheduler
from dalle_server.engine.sequence import ImageGroup
from dalle_server.engine.stats import Counters, Observer
from dalle_server.engine.tracker import RequestTracker
from dalle_server.generation import Cancelled, Generation, Progress
from dalle_server.request import GenerationRequest

TEXT = TextTokens(np.zeros(4, np.int32), 2)
NUM_TOKENS = 10


def make_job(num_images: int, client: str = "") -> ImageGroup:
    request = GenerationRequest.of("a", num_images, seed=1, client=client)
    return ImageGroup.of(Generation(request, request.sampling), TEXT, TEXT, NUM_TOKENS)


def drain(queue: FairQueue) -> list:
    return [queue.pop() for _ in range(len(queue))]


def test_turns_go_round_clients_then_requests():
    queue = FairQueue()
    groups = {name: make_job(n, client=name[0]) for name, n in [("a1", 3), ("a2", 2), ("b1", 2), ("c1", 1)]}
    for group in groups.values():
        queue.add(group)
    names = {group: name for name, group in groups.items()}
    expected = ["a1", "b1", "c1", "a2", "b1", "a1", "a2", "a1"]
    assert [names[picture.group] for picture in queue.in_order()] == expected, "looking changes nothing"
    order = drain(queue)
    assert [names[picture.group] for picture in order] == expected
    assert [picture.index for picture in order if picture.group is groups["a1"]] == [0, 1, 2]


def test_a_picture_put_back_is_next():
    queue = FairQueue()
    a, b = make_job(3, "a"), make_job(1, "b")
    queue.add(a)
    queue.add(b)
    first = queue.pop()
    queue.put_back(first)
    assert drain(queue)[0] is first
    queue.put_back(first)
    assert len(queue) == 1 and queue.pop() is first


def test_removed_requests_leave_nothing_behind():
    queue = FairQueue()
    a, b = make_job(3, "a"), make_job(1, "b")
    queue.add(a)
    queue.add(b)
    queue.pop()
    queue.remove(a)
    queue.remove(a)
    assert [picture.group for picture in drain(queue)] == [b] and len(queue) == 0


def test_the_rehearsal_is_exact():
    """What steps_until_done foretells is what happens when the schedule is played."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        scheduler = Scheduler(int(rng.integers(1, 5)))
        groups = [make_job(int(rng.integers(1, 6)), client="abc"[rng.integers(3)]) for _ in range(rng.integers(1, 6))]
        for group in groups:
            scheduler.add(group)
        while scheduler.admit_next():
            pass
        for sequence in scheduler.running.values():
            sequence.launched = sequence.written = int(rng.integers(0, NUM_TOKENS))
        foretold, ends = scheduler.steps_until_done(), {}
        for now in range(1, 1000):
            while scheduler.admit_next():
                pass
            for sequence in list(scheduler.running.values()):
                sequence.write(0)
                if sequence.is_complete:
                    scheduler.release(sequence)
                    ends[sequence.group] = now
            if scheduler.is_idle:
                break
        assert foretold == ends


def test_eta_is_steps_left_times_the_measured_step_plus_the_pixels():
    stats = Counters(num_slots=1, step_s=2.0, detokenize_s=1.0)
    tracker = RequestTracker(1, stats, Observer(), max_waiting_images=9, progress_every_s=0.0)
    running, waiting = make_job(2, "a"), make_job(1, "b")
    tracker.accept(running)
    tracker.accept(waiting)
    sequence, _ = tracker.admit_next()  # type: ignore[misc]
    tracker.admitted(sequence)
    sequences, rows = tracker.rows_to_launch()
    tracker.write(sequences, rows, StepResult(np.array([5], np.int32)))
    tracker.finish(running, Cancelled("enough"))
    (progress,) = (event for event in running.handle.events() if isinstance(event, Progress))
    steps = (NUM_TOKENS - 1) + NUM_TOKENS + NUM_TOKENS  # this picture, the other client's turn, the second picture
    assert progress == Progress(1, 2 * NUM_TOKENS, steps * 2.0 + 1.0)
    assert sequence.written == 1


def test_slots_out_of_use_come_back_with_the_next_request():
    scheduler = Scheduler(4)
    group = make_job(4)
    scheduler.add(group)
    while scheduler.admit_next():
        pass
    scheduler.shrink(2)
    assert sorted(scheduler.running) == [0, 1] and len(scheduler.waiting) == 2
    assert scheduler.admit_next() is None
    assert scheduler.steps_until_done()[group] == 2 * NUM_TOKENS
    scheduler.remove(group)
    scheduler.add(make_job(4))
    while scheduler.admit_next():
        pass
    assert sorted(scheduler.running) == [0, 1, 2, 3]


def test_evicted_pictures_come_back_in_their_order():
    scheduler = Scheduler(4)
    scheduler.add(make_job(4))
    while scheduler.admit_next():
        pass
    scheduler.shrink(1)
    assert [sequence.index for sequence in scheduler.waiting.in_order()] == [1, 2, 3]


def test_slots_lost_to_a_lack_of_memory_come_back_though_the_queue_never_empties():
    now = 0.0
    scheduler = Scheduler(4, clock=lambda: now)
    scheduler.add(make_job(40))

    def fill() -> int:
        while scheduler.admit_next():
            pass
        return len(scheduler.running)

    assert fill() == 4
    scheduler.shrink(2)
    assert fill() == 2
    now = 59.0
    assert fill() == 2
    now = 60.0
    assert fill() == 4, "a minute later"
    scheduler.shrink(2)
    now = 179.0
    assert fill() == 2, "a second time it takes longer"
    now = 180.0
    assert fill() == 4


def test_slots_are_out_of_use_for_an_hour_at_most():
    now = 0.0
    scheduler = Scheduler(2, clock=lambda: now)
    scheduler.add(make_job(40))
    for _ in range(20):
        scheduler.shrink(1)
    while scheduler.admit_next():
        pass
    assert len(scheduler.running) == 1
    now = 3600.0
    while scheduler.admit_next():
        pass
    assert len(scheduler.running) == 2
