"""Which finished jobs go, whose they are, and that no clock that jumps deletes them."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from dalle_server.web.jobs.storage.retention import Retention, SteadyClock, expired
from dalle_server.web.jobs.storage.rows import Finished
from dalle_server.web.jobs.storage.store import CLOCK, Store
from tests.web.jobs.store_help import finished, ids, job

DAY_S = 86_400.0


def rows(*owners: str, pictures: int = 1, size: int = 10, first: int = 0) -> list[Finished]:
    return [Finished(f"job-{first + n}", owner, first + n, pictures, size) for n, owner in enumerate(owners)]


@pytest.mark.parametrize(
    ("retention", "gone"),
    [
        (Retention(), []),
        (Retention(max_jobs=2), ["job-0", "job-1"]),
        (Retention(max_bytes=35), ["job-0"]),
        (Retention(max_age_s=97), ["job-0", "job-1", "job-2"]),
        (Retention(max_age_s=98, max_jobs=1), ["job-0", "job-1", "job-2"]),
    ],
)
def test_the_oldest_go_first(retention: Retention, gone: list[str]) -> None:
    assert expired(rows("a", "a", "a", "a"), retention, now=100) == gone


def test_jobs_without_pictures_go_before_any_with() -> None:
    kept = rows("me", "me", "me")
    flood = rows(*["you"] * 50, pictures=0, size=0, first=10)
    gone = expired([*kept, *flood], Retention(max_jobs=20), now=100)
    assert gone == [f"job-{number}" for number in range(10, 43)]


@pytest.mark.parametrize(("size", "retention"), [(10, Retention(max_jobs=20)), (100, Retention(max_bytes=2_000))])
def test_a_flood_of_one_owner_costs_only_its_own(size: int, retention: Retention) -> None:
    mine = rows(*["me"] * 9, size=size)
    flood = rows(*["you"] * 50, size=size, first=100)
    gone = set(expired([*mine, *flood], retention, now=100))
    left = Counter(job.owner for job in (*mine, *flood) if job.id not in gone)
    assert left == {"me": 9, "you": 11}


def test_each_of_n_owners_is_sure_of_an_nth_part() -> None:
    jobs = rows(*["a"] * 30, *["b"] * 5, *["c"] * 30)
    gone = set(expired(jobs, Retention(max_jobs=30), now=100))
    assert Counter(job.owner for job in jobs if job.id not in gone) == {"a": 12, "b": 5, "c": 13}


def test_one_heavy_job_does_not_take_another_owners_with_it() -> None:
    jobs = [*rows("me", size=10), Finished("job-9", "you", 9, 1, 10_000)]
    assert expired(jobs, Retention(max_bytes=5_000), now=100) == ["job-9"]


def test_a_steady_clock_catches_up_at_twice_the_speed() -> None:
    clock = SteadyClock(seen_at=1_000.0, wall=1_000.0 + 8 * DAY_S, monotonic=0.0)
    assert clock.now(wall=1_000.0 + 8 * DAY_S + 60, monotonic=60.0) == 1_120.0
    assert clock.now(wall=1_000.0 + 16 * DAY_S, monotonic=60.0 + 8 * DAY_S) == pytest.approx(1_000 + 16 * DAY_S)
    assert clock.now(wall=500.0, monotonic=60.0 + 9 * DAY_S) == 500.0  # set back: never ahead of it


def test_a_steady_clock_begins_at_the_wall_clock_where_nothing_is_known() -> None:
    assert SteadyClock(None, wall=5_000.0, monotonic=0.0).now(5_001.0, 1.0) == 5_001.0
    assert SteadyClock(9_000.0, wall=5_000.0, monotonic=0.0).now(5_001.0, 1.0) == 5_001.0


@pytest.mark.parametrize("days", [8, 400])
def test_a_start_with_a_clock_far_ahead_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    store, now = Store(tmp_path), time.time()
    for number in range(3):
        finished(store, number)
        store.rows.update(f"job-{number}", finished_at=now - 60)
    store.close()
    monkeypatch.setattr(time, "time", lambda: now + days * DAY_S)
    jumped = Store(tmp_path)
    assert jumped.sweep(Retention(max_age_s=7 * DAY_S)) == 0
    assert len(ids(jumped)) == 3


def test_what_is_really_old_goes_over_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle server that is restarted every day: its clock is remembered, not begun again."""
    start, passed = time.time(), 0.0
    monkeypatch.setattr(time, "time", lambda: start + passed)
    monkeypatch.setattr(time, "monotonic", lambda: passed)
    store = Store(tmp_path)
    finished(store, 1)
    store.rows.update("job-1", finished_at=start)
    for _ in range(8):
        store.close()
        store = Store(tmp_path)
        passed += DAY_S
        store.sweep(Retention(max_age_s=7 * DAY_S))
    assert ids(store) == []
    assert store.rows.note(CLOCK) == pytest.approx(start + passed)


def test_a_sweep_deletes_some_at_a_time_and_never_what_is_unfinished(store: Store) -> None:
    for number in range(120):
        finished(store, number, num_pictures=0)
    store.add(job(999))
    retention = Retention(max_jobs=10)
    assert [store.sweep(retention) for _ in range(4)] == [50, 50, 10, 0]
    assert len(ids(store)) == 11
    assert not store.is_over(retention)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)
