"""The jobs that the engine has: events become rows and files (what lasts) and entries of the feed (what is shown)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from dalle_server.drawing.best_of import score
from dalle_server.drawing.repaint import Frame
from dalle_server.drawn import Drawn
from dalle_server.errors import DalleServerError, EngineDown, EngineFault, GenerationFailed, NotReady
from dalle_server.generation import (
    Cancelled,
    Done,
    Event,
    Failed,
    GeneratedImage,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.pictures.codec import ImageFormat, data_url
from dalle_server.pictures.metadata import PictureMetadata
from dalle_server.snapshot import Snapshot
from dalle_server.web.errors import openai_error
from dalle_server.web.jobs.ends import Ends, image_json
from dalle_server.web.jobs.feed import Feed
from dalle_server.web.jobs.storage.records import Job
from dalle_server.web.jobs.storage.store import Store
from dalle_server.web.pool.pool import Hold

PREVIEW_QUALITY = 80
PREVIEW_PX = 1024  # the longer side of one, of a picture that was given

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Live:
    """A job that the engine has."""

    job: Job
    generation: Drawn
    held: Hold  # its model's: between two windows of a picture, nothing else says that it is needed
    row_tokens: int  # of the grid: a preview shows whole rows
    frame: Frame | None = None  # the picture that it draws over, once something of it is to be shown
    preview_frame: Frame | None = None  # the same, no larger than a preview
    offset: int = 0  # tokens of the pictures that an earlier run of the server finished
    cancelled: bool = False
    untold: Event | None = None  # could not be written down: the database was away
    snapshot: Snapshot = field(default_factory=Snapshot)
    reader: Iterator[Event | None] = field(init=False)  # the same every time: what it has at hand is not lost

    def __post_init__(self) -> None:
        self.reader = self.generation.events(poll_s=0)

    def events(self) -> Iterator[Event | None]:
        """What is new; None when there is no more for now."""
        return chain([] if self.untold is None else [self.untold], self.reader)

    def counted(self, progress: Progress) -> dict[str, Any]:
        """Over all pictures of the job."""
        done, total = self.offset + progress.tokens_done, self.offset + progress.num_tokens
        return {"tokens_done": done, "num_tokens": total, "eta_s": progress.eta_s}


class Running:
    """`goes_on_later()` says that the server is on its way down: then ends are not written, the next start goes on.
    `again(job)` takes a job that a fault of the engine has ended, once.
    """

    def __init__(self, feed: Feed, ends: Ends, goes_on_later: Callable[[], bool], again: Callable[[Job], None]):
        self._feed, self._ends = feed, ends
        self._goes_on_later, self._again = goes_on_later, again
        self._live: dict[str, Live] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._live)

    def watch(self, live: Live) -> None:
        """Read its events from now on."""
        with self._lock:
            self._live[live.job.id] = live
        if live.cancelled:
            live.generation.cancel()
        self.steer_previews(live)

    def cancel(self, job_id: str) -> bool:
        """False when the engine does not have it."""
        with self._lock:
            live = self._live.get(job_id)
        if live is not None:
            live.cancelled = True
            live.generation.cancel()
        return live is not None

    def ids(self) -> set[str]:
        with self._lock:
            return set(self._live)

    def progress(self, job_id: str) -> dict[str, Any] | None:
        """position, tokens_done, num_tokens and eta_s, as far as they are known; None: the engine does not have it."""
        live = self._live.get(job_id)
        if live is None:
            return None
        snapshot = live.snapshot
        counted = {} if snapshot.progress is None else live.counted(snapshot.progress)
        return {"position": snapshot.position, **counted}

    def drop(self, job_id: str) -> None:
        """It is another server's now: nothing of it is written down here any more."""
        with self._lock:
            live = self._live.pop(job_id, None)
        if live is not None:
            logger.warning("job %s goes on at another server", job_id)
            live.generation.cancel()
            live.held.close()

    def let_go(self) -> None:
        """Nothing is read any more: no model is kept for it."""
        with self._lock:
            live = list(self._live.values())
        for each in live:
            each.held.close()

    def read_all(self, store: Store) -> None:
        with self._lock:
            live = list(self._live.values())
        for each in live:
            self.read(store, each)

    def read(self, store: Store, live: Live) -> bool:
        """What the engine has said since the last time. True when that was the end."""
        is_over = self._read(store, live)
        if is_over or live.generation.terminal is not None:  # the end may wait for the database, other models need not
            live.held.close()
        return is_over

    def _read(self, store: Store, live: Live) -> bool:
        self.steer_previews(live)
        try:
            for event in live.events():
                live.untold = event
                if event is None:
                    return False
                live.snapshot = live.snapshot.fold(event)
                self._tell(store, live, event)
        except NotReady:  # the database is away: it goes on when that is back
            return False
        except Exception as error:
            if not isinstance(error, DalleServerError):
                logger.exception("job %s", live.job.id)
            live.generation.cancel("the job failed")
            known = error if isinstance(error, DalleServerError) else GenerationFailed("the picture could not be saved")
            if not self._goes_on_later():
                self._ends.end(store, live.job, "failed", {"error": openai_error(known)})
        with self._lock:
            self._live.pop(live.job.id, None)
        return True

    def steer_previews(self, live: Live) -> None:
        """One preview for each finished row of the grid, while the job wants them and somebody looks."""
        wanted = live.job.preview and self._feed.watched(live.job.id, live.job.owner)
        live.generation.want_previews(live.row_tokens if wanted else 0)

    def _tell(self, store: Store, live: Live, event: Event) -> None:
        job_id, feed = live.job.id, self._feed
        match event:
            case Queued(position):
                feed.publish(job_id, "queued", {"position": position})
            case Started(queue_s):
                store.rows.update(job_id, status="running", started_at=time.time(), queue_s=queue_s)
                feed.publish(job_id, "started", {"queue_s": queue_s})
            case Progress():
                feed.publish(job_id, "progress", live.counted(event))
            case Preview(index, tokens_done, pixels):
                _, frame = _frames(store, live)
                pixels = pixels if frame is None else frame.finished(pixels)
                form = live.job.form.no_larger_than(max(pixels.shape[:2]))
                form = replace(form, format=ImageFormat.JPEG, quality=PREVIEW_QUALITY)
                encoded = form.file(pixels, live.generation)
                shown = {"index": live.generation.request.images[index].index, "tokens_done": tokens_done}
                feed.publish(job_id, "preview", {**shown, "image": data_url(encoded, ImageFormat.JPEG)})
            case ImageReady(image):
                self._save(store, live, image)
            case Done() | Failed() | Cancelled():
                self._end(store, live, event)

    def _end(self, store: Store, live: Live, event: Done | Failed | Cancelled) -> None:
        match event:
            case Done(_, queue_s, total_s):
                self._ends.end(store, live.job, "done", {"queue_s": queue_s, "total_s": total_s})
            case Failed(EngineFault()) if live.job.faults == 0 and not live.cancelled:
                job = replace(live.job, faults=1, status="queued", started_at=None, queue_s=None)
                self._requeue(store, job)
            case Failed(EngineDown()) if not live.cancelled and not self._goes_on_later():
                self._requeue(store, replace(live.job, status="queued", started_at=None, queue_s=None))
            case Failed(error) if not self._goes_on_later():
                self._ends.end(store, live.job, "failed", {"error": openai_error(error)})
            case Cancelled(reason) if live.cancelled or not self._goes_on_later():
                self._ends.end(store, live.job, "cancelled", {"reason": reason})

    def _requeue(self, store: Store, job: Job) -> None:
        """The fault may have been a neighbour's: the next time it counts as this job's own. An engine that went down
        between two windows of a picture was no job's.
        """
        logger.warning("job %s goes on when its engine is back", job.id)
        names = ("faults", "status", "started_at", "queue_s")
        store.rows.update(job.id, **{name: getattr(job, name) for name in names})
        self._again(replace(job, pictures=(store.rows.get(job.id) or job).pictures))
        self._feed.publish(job.id, "queued", {"position": None})

    def _save(self, store: Store, live: Live, image: GeneratedImage) -> None:
        job = live.job
        metadata = PictureMetadata.of(
            live.generation.request_of(image),
            live.generation.sampling,
            image,
            model=job.model,
            digest=job.digest,
            over=None if job.over is None else job.over.told,
            grid_width=live.generation.grid_width,
        )
        frame, _ = _frames(store, live)
        pixels = image.pixels if frame is None else frame.finished(image.pixels)
        data = job.form.file(pixels, live.generation, metadata)
        height_px, width_px = pixels.shape[:2]
        size_px, noise = job.form.size_px or (width_px, height_px), live.generation.request.images[image.index].index
        if job.best_of is None:
            picture = store.add_picture(job, noise, data, size_px)
        else:
            picture = store.add_picture(job, image.index, data, size_px, noise=noise, score=score(image))
        self._feed.publish(job.id, "image", image_json(job, picture))


def _frames(store: Store, live: Live) -> tuple[Frame | None, Frame | None]:
    """The picture that the job draws over, whole and as a preview shows it. Decoded when it is first wanted: only
    running jobs hold theirs in memory.
    """
    if live.frame is None and live.job.over is not None:
        given = store.given(live.job)
        assert given is not None, "a job over a picture has one"
        live.frame = given.frame()
        live.preview_frame = live.frame.reduced(PREVIEW_PX)
    return live.frame, live.preview_frame
