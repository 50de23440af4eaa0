"""Jobs of several servers on one PostgreSQL: taken over from a server that has gone, cancelled and watched from any."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from dalle_server.errors import DalleServerError
from dalle_server.web.jobs.ends import end_data, image_json
from dalle_server.web.jobs.feed import Feed
from dalle_server.web.jobs.relay import Message, Relay
from dalle_server.web.jobs.storage.leases import BEATS, Leases
from dalle_server.web.jobs.storage.records import TERMINAL
from dalle_server.web.jobs.storage.store import Store

if TYPE_CHECKING:
    from dalle_server.web.jobs.pump import Jobs

CLAIM_AT_ONCE = 16  # so that several servers share what one has left

logger = logging.getLogger(__name__)


class Sharing:
    """`look` belongs to the thread of jobs; a thread of its own says that this server lives."""

    def __init__(self, store: Store, leases: Leases, feed: Feed, held: Jobs):
        self._store, self._leases, self._feed, self._held = store, leases, feed, held
        self._relay = Relay(store.rows.database, leases.holder, self._hear, missed=self.look_soon)
        self._stopping = threading.Event()
        self._looked_at = float("-inf")
        self.trouble: str | None = None  # the database is away
        leases.beat()
        feed.relay = self._tell
        self._relay.start()
        threading.Thread(target=self._beat, name="jobs-lease", daemon=True).start()

    @property
    def _pause_s(self) -> float:
        return self._leases.lease_s / BEATS

    def look(self) -> None:
        """Take over what nobody holds, drop what is held by another, cancel what was asked for elsewhere, tell what
        ended there.
        """
        if time.monotonic() - self._looked_at < self._pause_s:
            return
        self._looked_at = time.monotonic()
        local = self._held.local_ids()
        mine = self._leases.mine()
        for job_id in local - mine.keys():
            self._held.drop(job_id)
        claimed = self._leases.claim(CLAIM_AT_ONCE)
        if claimed:
            logger.info("%d jobs of a server that has gone are taken over", len(claimed))
            mine = self._leases.mine()
        for job_id, cancel_asked in mine.items():
            if job_id not in local:
                self._take_if_lacking(job_id)
            if cancel_asked:
                self._held.cancel_here(job_id)
        self._tell_missed_ends()

    def _take_if_lacking(self, job_id: str) -> None:
        """What was claimed just now, or earlier by a look that came no further: the database was away in between."""
        if self._held.lacks(job_id) and (job := self._store.rows.get(job_id)) is not None and not job.is_finished:
            self._held.take(job)

    def look_soon(self) -> None:
        """Words of other servers were missed."""
        self._looked_at = float("-inf")

    def cancel_elsewhere(self, job_id: str) -> None:
        self._leases.ask_to_cancel(job_id)
        self._relay.tell("cancel", job_id)

    def close(self) -> None:
        """Others may take over at once."""
        self._stopping.set()
        self._relay.close()
        try:
            self._leases.leave()
        except DalleServerError as error:
            logger.warning("the lease on jobs ends by itself in %g s: %s", self._leases.lease_s, error.message)

    def _beat(self) -> None:
        while not self._stopping.wait(self._pause_s):
            try:
                self._leases.beat()
            except DalleServerError as error:
                self.trouble = error.message
            else:
                self.trouble = None

    def _tell(self, job_id: str, owner: str, event: str, data: dict[str, Any]) -> None:
        if event in TERMINAL:
            self._relay.tell(event, job_id, owner=owner)  # the row says the rest, which may be long
        elif event != "preview":
            self._relay.tell(event, job_id, owner=owner, data=data)

    def _hear(self, message: Message) -> None:
        kind, job_id = message["kind"], message["job"]
        if kind == "cancel":
            self._held.cancel_here(job_id)
        elif kind in TERMINAL:
            self._tell_end(job_id)
        else:
            self._feed.hear(job_id, message["owner"], kind, message["data"])

    def _tell_missed_ends(self) -> None:
        """Whoever watches a job of another server gets its end, also where no word of it came."""
        theirs = self._feed.unended() - self._held.local_ids()
        statuses = self._store.rows.statuses(theirs)
        for job_id in theirs:
            if job_id not in statuses:  # it ended, and was deleted since
                self._feed.forget(job_id)
            elif statuses[job_id] in TERMINAL:
                self._tell_end(job_id)

    def _tell_end(self, job_id: str) -> None:
        """As the row has it, after those of the job's pictures of which no word came."""
        job = self._store.rows.get(job_id)
        if job is None or not job.is_finished:
            return
        for picture in job.pictures:
            if not self._feed.latest(job_id, "image", picture.index):
                self._feed.hear(job_id, job.owner, "image", image_json(job, picture))
        self._feed.hear(job_id, job.owner, job.status, end_data(job))


def shared(store: Store, feed: Feed, held: Jobs) -> Sharing | None:
    """None where one server has the database for itself. Raises NotReady."""
    return None if store.leases is None else Sharing(store, store.leases, feed, held)
