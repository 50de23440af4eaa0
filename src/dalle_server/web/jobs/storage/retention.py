"""Which finished jobs are no longer kept, and by what clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dalle_server.web.jobs.storage.rows import Finished

CATCH_UP = 1.0  # seconds that the clock of retention gains on the true one for each second it runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long finished jobs are kept; 0 = without this limit."""

    max_age_s: float = 0
    max_jobs: int = 0
    max_bytes: int = 0


class SteadyClock:
    """Time as retention counts it: a wall clock that jumped ahead (a wrong date, a machine that slept) makes
    nothing old at once. What is missing is caught up at twice the speed of time, while the server runs.
    """

    def __init__(self, seen_at: float | None, wall: float, monotonic: float):
        """`seen_at` is the newest moment that anything stored knows of; None = nothing is stored."""
        self._now = wall if seen_at is None else min(seen_at, wall)
        self._looked_at = monotonic

    def now(self, wall: float, monotonic: float) -> float:
        """Never ahead of the wall clock, which may also be set back."""
        passed = max(0.0, monotonic - self._looked_at)
        self._looked_at = monotonic
        self._now = min(wall, self._now + passed * (1 + CATCH_UP))
        return self._now


def expired(finished: Sequence[Finished], retention: Retention, now: float) -> list[str]:
    """The ids of jobs (`finished` is oldest first) to delete.

    What is too old goes. When there are too many jobs or too many bytes, the owner who has most of them loses his
    oldest: whoever fills the store empties his own share, and each of n owners is sure of an nth part. Of too many
    jobs, those without pictures go first.
    """
    too_old = [job for job in finished if retention.max_age_s and now - job.finished_at > retention.max_age_s]
    gone = {job.id for job in too_old}
    kept = [job for job in finished if job.id not in gone]
    if retention.max_jobs and len(kept) > retention.max_jobs:
        surplus = len(kept) - retention.max_jobs
        empty = _surplus([job for job in kept if not job.num_pictures], surplus, lambda _: 1)
        full = _surplus([job for job in kept if job.num_pictures], surplus - len(empty), lambda _: 1)
        gone |= {job.id for job in (*empty, *full)}
        kept = [job for job in kept if job.id not in gone]
    size_bytes = sum(job.size_bytes for job in kept)
    if retention.max_bytes and size_bytes > retention.max_bytes:
        heavy = [job for job in kept if job.size_bytes]
        gone |= {job.id for job in _surplus(heavy, size_bytes - retention.max_bytes, lambda job: job.size_bytes)}
    return [job.id for job in finished if job.id in gone]


def _surplus(jobs: Iterable[Finished], surplus: int, weigh: Callable[[Finished], int]) -> list[Finished]:
    """The oldest jobs, each time of the owner that has most, until they weigh `surplus`."""
    owned: dict[str, list[Finished]] = defaultdict(list)
    for job in jobs:
        owned[job.owner].append(job)
    weights = {owner: sum(map(weigh, some)) for owner, some in owned.items()}
    found: list[Finished] = []
    queues = {owner: iter(some) for owner, some in owned.items()}
    while surplus > 0 and any(weights.values()):
        owner = max(weights, key=weights.__getitem__)
        job = next(queues[owner])
        found.append(job)
        weights[owner] -= weigh(job)
        surplus -= weigh(job)
    return found
