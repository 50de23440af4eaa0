"""What the running jobs look like right now, for any number of viewers, each at its own speed.

The feed keeps the latest entry of each kind instead of a log: a slow viewer skips previews that newer ones
replaced, memory stays bounded, and a viewer that was cut off goes on from its Last-Event-ID for free.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from dalle_server.errors import Overloaded
from dalle_server.web.jobs.storage.records import TERMINAL

RUN = 1 << 32  # events that one run of a server may tell before their numbers meet those of the next
KEEP_ENDED_S = 60.0  # a viewer that reconnects within this time still gets the end


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of one job. Numbers grow over all jobs and over restarts, whatever the clock says: see `begin`."""

    number: int
    job_id: str
    event: str
    data: dict[str, Any]


class _JobEntries:
    def __init__(self, owner: str, newest: int):
        self.owner = owner
        self.newest = newest  # no entry has a higher number
        self.entries: dict[tuple[str, int], Entry] = {}  # by event name and picture
        self.ended_at: float | None = None


class View:
    """One viewer's place in the feed."""

    def __init__(self, feed: Feed, owner: str, job_id: str, client: str, after: int):
        self._feed, self._owner, self._job_id, self._client, self._after = feed, owner, job_id, client, after
        self._closed = False

    def entries(self, patience_s: float) -> Iterator[list[Entry]]:
        """What is new, as it comes; an empty list after `patience_s`, or at another job's news. Ends with the job, or
        the feed.
        """
        over = False
        while not over:
            found, over = self._feed.wait(self._owner, self._job_id, self._after, patience_s)
            self._after = found[-1].number if found else self._after
            yield found

    def close(self) -> None:
        """From here on nobody looks; may be called twice. A generator's own `finally` would be too late: one that
        was never started has none."""
        if not self._closed:
            self._closed = True
            self._feed.leave(self._owner, self._job_id, self._client)


class Feed:
    """Publish and view from any thread. A viewer waits on a condition; it never polls."""

    def __init__(self, max_viewers: int):
        self._max_viewers = max_viewers
        self._changed = threading.Condition()
        # By their newest, so that a viewer looks at those with news only, and not at every job that waits.
        self._jobs: OrderedDict[str, _JobEntries] = OrderedDict()
        self._number = 0
        self._viewers: Counter[tuple[str, str]] = Counter()  # (owner, job id; "" = all of the owner's)
        self._clients: Counter[str] = Counter()  # how many views each has open
        self._closed = False
        self.relay: Callable[[str, str, str, dict[str, Any]], None] | None = None  # to other servers

    def begin(self, run: int) -> None:
        """Events of this run are numbered above those of every run before it."""
        with self._changed:
            self._number = max(self._number, run * RUN)

    def open(self, job_id: str, owner: str) -> None:
        """From here on the job can be watched. One that is taken up again keeps what was told of it."""
        with self._changed:
            known = self._jobs.get(job_id)
            if known is None or known.ended_at is not None:
                self._jobs[job_id] = _JobEntries(owner, self._number)
                self._jobs.move_to_end(job_id)

    def expect(self, job_id: str, owner: str) -> None:
        """Another server may tell of this job."""
        with self._changed:
            self._jobs.setdefault(job_id, _JobEntries(owner, self._number))

    def count_up(self) -> int:
        """A number above those of all events so far, and not above those of later ones."""
        with self._changed:
            self._number += 1
            return self._number

    def publish(self, job_id: str, event: str, data: dict[str, Any]) -> None:
        """To those who look here, and to the other servers of the database."""
        job = self._jobs.get(job_id)
        if self.relay is not None and job is not None:
            self.relay(job_id, job.owner, event, data)
        self._show(job_id, event, data)

    def hear(self, job_id: str, owner: str, event: str, data: dict[str, Any]) -> None:
        """What another server tells of a job of its own. After the job's end it is told too late."""
        self.expect(job_id, owner)
        self._show(job_id, event, data)

    def _show(self, job_id: str, event: str, data: dict[str, Any]) -> None:
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or job.ended_at is not None:
                return
            self._number += 1
            job.newest = self._number
            self._jobs.move_to_end(job_id)
            index = data.get("index", -1)
            job.entries[event, index] = Entry(self._number, job_id, event, {"job": job_id, **data})
            if event == "image":
                job.entries.pop(("preview", index), None)
            if event in TERMINAL:
                job.ended_at = time.monotonic()
                job.entries = {key: entry for key, entry in job.entries.items() if key[0] in ("image", *TERMINAL)}
                self._forget_ended()
            self._changed.notify_all()

    def latest(self, job_id: str, event: str, index: int = -1) -> dict[str, Any]:
        """The data of the job's newest `event` (of the picture `index`), or nothing."""
        with self._changed:
            job = self._jobs.get(job_id)
            entry = None if job is None else job.entries.get((event, index))
            return {} if entry is None else entry.data

    def unended(self) -> set[str]:
        """The jobs whose end was not told here."""
        with self._changed:
            return {job_id for job_id, job in self._jobs.items() if job.ended_at is None}

    def forget(self, job_id: str) -> None:
        """The job is nowhere any more: its views end without a word."""
        with self._changed:
            self._jobs.pop(job_id, None)
            self._changed.notify_all()

    def watched(self, job_id: str, owner: str) -> bool:
        """Does anyone look at this job, or at all of its owner's?"""
        with self._changed:
            return bool(self._viewers[owner, job_id] or self._viewers[owner, ""])

    def join(self, owner: str, job_id: str = "", *, client: str = "", after: int = 0) -> View:
        """A view of one job, or of all of the owner's; close it. Raises Overloaded when too many look on already,
        or when `client` holds half of the places.

        A viewer whose `after` is higher than any number told so far has seen another server's events, or this one's
        before its data was lost: everything is news to it.
        """
        with self._changed:
            if self._viewers.total() >= self._max_viewers:
                raise Overloaded("too many event streams are open; poll GET /v1/jobs instead", retry_after_s=5)
            if self._clients[client] >= (self._max_viewers + 1) // 2:
                raise Overloaded(
                    "you have too many event streams open; close some, or poll GET /v1/jobs instead", retry_after_s=5
                )
            self._viewers[owner, job_id] += 1
            self._clients[client] += 1
            after = self._known(after)
        return View(self, owner, job_id, client, after)

    def has_told(self, number: int, after: int) -> bool:
        """Whether a viewer that has seen all up to `after` knows what was told at `number`."""
        with self._changed:
            if self.relay is not None and after // RUN != number // RUN:
                return False  # another server's count: told once more, in the one that its viewer then has
            return self._known(after) >= max(1, number)

    def _known(self, after: int) -> int:
        return after if after <= self._number else 0

    def leave(self, owner: str, job_id: str, client: str) -> None:
        with self._changed:
            self._viewers[owner, job_id] -= 1
            self._clients[client] -= 1
            self._viewers += Counter()  # drops the zeros
            self._clients += Counter()

    def wait(self, owner: str, job_id: str, after: int, patience_s: float) -> tuple[list[Entry], bool]:
        """The entries numbered above `after`, oldest first, as soon as there are any; and whether they are the last."""
        with self._changed:
            found = self._newer(owner, job_id, after)
            if not found and not self._is_over(job_id):
                self._changed.wait(patience_s)
                found = self._newer(owner, job_id, after)
            return found, self._is_over(job_id)

    def close(self) -> None:
        """Ends every view: the server is going down."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _newer(self, owner: str, job_id: str, after: int) -> list[Entry]:
        asked: Iterable[_JobEntries] = reversed(self._jobs.values())
        if job_id:
            asked = [self._jobs[job_id]] if job_id in self._jobs else []
        jobs = takewhile(lambda job: job.newest > after, asked)
        found = [entry for job in jobs if job.owner == owner for entry in job.entries.values() if entry.number > after]
        return sorted(found, key=lambda entry: entry.number)

    def _is_over(self, job_id: str) -> bool:
        job = self._jobs.get(job_id)
        return self._closed or bool(job_id and (job is None or job.ended_at is not None))

    def _forget_ended(self) -> None:
        limit = time.monotonic() - KEEP_ENDED_S
        ended = ((job_id, job.ended_at) for job_id, job in self._jobs.items() if job.ended_at is not None)
        for job_id in [job_id for job_id, _ in takewhile(lambda job: job[1] < limit, ended)]:
            del self._jobs[job_id]
