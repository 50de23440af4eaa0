"""Stands for the jobs of this server, where what is shared with others is looked at."""

from __future__ import annotations

from typing import Any


class Held:
    """`local` are in hand; `ended` are those whose row could not be told so."""

    def __init__(self) -> None:
        self.local: set[str] = set()
        self.ended: set[str] = set()
        self.cancelled: list[str] = []
        self.taken: list[str] = []

    def local_ids(self) -> set[str]:
        return set(self.local)

    def lacks(self, job_id: str) -> bool:
        return job_id not in self.local | self.ended

    def take(self, job: Any) -> None:
        self.local.add(job.id)
        self.taken.append(job.id)

    def drop(self, job_id: str) -> None:
        self.local.discard(job_id)

    def cancel_here(self, job_id: str) -> bool:
        self.cancelled.append(job_id)
        return job_id in self.local
