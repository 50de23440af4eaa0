"""How a job ends: its row first, then the event, also where the disk takes no more."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import Any

from dalle_server.errors import DalleServerError, NotReady
from dalle_server.web.jobs.feed import Feed
from dalle_server.web.jobs.storage.records import Job, JobPicture
from dalle_server.web.jobs.storage.store import Store

RECORD_AGAIN_S = 5.0  # after the disk refused to take a job's end

logger = logging.getLogger(__name__)


class Ends:
    """Ends of jobs: told to whoever watches, and kept in mind until they could be written down."""

    def __init__(self, feed: Feed):
        self.count = 0  # of ends so far
        self._feed = feed
        self._unrecorded: dict[str, Job] = {}  # after a restart they run again
        self._refused_at = 0.0
        self._lock = threading.Lock()

    def end(self, store: Store, job: Job, status: str, data: dict[str, Any]) -> None:
        """`data` is what the terminal event says beside the pictures."""
        try:
            job = store.rows.get(job.id) or job
        except NotReady:  # the database is away: the end comes again
            raise
        except DalleServerError as error:
            logger.warning("job %s ends, but its row cannot be read: %s", job.id, error.message)
        ended = replace(
            job,
            status=status,
            error=data.get("error"),
            finished_at=time.time(),
            total_s=data.get("total_s"),
            last_event=self._feed.count_up(),
        )
        self._record(store, ended)
        self.count += 1
        if status == "done":
            data = {"images": [image_json(ended, picture) for picture in ended.pictures], **data}
        self._feed.publish(job.id, status, data)

    def current(self, job: Job) -> Job:
        """`job` as its row tells it, or as it ended where the row could not be written."""
        ended = self._unrecorded.get(job.id)
        return job if ended is None else replace(ended, pictures=job.pictures)

    def keeps(self, job_id: str) -> bool:
        """That it has ended, and its row could not be told so far."""
        return job_id in self._unrecorded

    def forget(self, job_id: str) -> None:
        with self._lock:
            self._unrecorded.pop(job_id, None)

    def record_again(self, store: Store) -> None:
        if self._unrecorded and time.monotonic() - self._refused_at >= RECORD_AGAIN_S:
            for ended in list(self._unrecorded.values()):
                self._record(store, ended)

    def _record(self, store: Store, ended: Job) -> None:
        names = ("status", "error", "finished_at", "total_s", "last_event")
        try:
            store.rows.update(ended.id, **{name: getattr(ended, name) for name in names})
        except DalleServerError as error:
            logger.warning("the end of job %s could not be written down yet: %s", ended.id, error.message)
            with self._lock:
                self._unrecorded[ended.id] = ended
            self._refused_at = time.monotonic()
        else:
            self.forget(ended.id)


def end_data(job: Job) -> dict[str, Any]:
    """What the terminal event of a job says, from its row."""
    match job.status:
        case "done":
            images = [image_json(job, picture) for picture in job.pictures]
            return {"images": images, "queue_s": job.queue_s, "total_s": job.total_s}
        case "failed":
            return {"error": job.error}
    return {"reason": "cancelled"}


def image_json(job: Job, picture: JobPicture) -> dict[str, Any]:
    """A finished picture as the API shows it."""
    return {
        "index": picture.index,
        "image_index": picture.image_index,
        "score": None if picture.score is None else round(picture.score, 4),
        "seed": job.seed,
        "seed_text": str(job.seed),
        "url": f"/v1/jobs/{job.id}/pictures/{picture.index}",
        "format": job.format,
        "width_px": picture.width_px,
        "height_px": picture.height_px,
        "size_bytes": picture.size_bytes,
    }
