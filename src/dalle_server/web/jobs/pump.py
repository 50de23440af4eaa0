"""Runs jobs: one thread folds the engine's events into the store (what lasts) and the feed (what is shown)."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from dalle_server.config import Settings
from dalle_server.errors import DalleServerError, GenerationFailed, Overloaded, RateLimited, StorageError
from dalle_server.generation import (
    Cancelled,
    Done,
    Event,
    Failed,
    GeneratedImage,
    Generation,
    GenerationRequest,
    ImageReady,
    Preview,
    Progress,
    Queued,
    SamplingParams,
    Started,
)
from dalle_server.pictures.codec import ImageFormat, data_url, encode_image
from dalle_server.pictures.metadata import PictureMetadata
from dalle_server.web.errors import openai_error
from dalle_server.web.jobs.feed import Feed
from dalle_server.web.jobs.resume import SAMPLING, remaining_request
from dalle_server.web.jobs.storage import UNFINISHED, Job, Picture, Retention, Store
from dalle_server.web.service import Service

TICK_S = 0.025  # how often running generations are read: the delay of an event, and the most that previews cost
IDLE_S = 1.0
SWEEP_EVERY_S = 300.0
RECORD_AGAIN_S = 5.0  # after the disk refused to take a job's end
PREVIEW_QUALITY = 80

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Live:
    """A job that the engine has."""

    job: Job
    generation: Generation
    offset: int  # tokens of the pictures that an earlier run of the server finished
    cancelled: bool = False


class Jobs:
    """Submit, cancel and delete from any thread. Opens the store when it starts."""

    def __init__(self, settings: Settings, service: Service):
        self.feed = Feed(max_viewers=settings.max_event_streams)
        self._settings = settings
        self._service = service
        self._retention = Retention(
            max_age_s=settings.job_retention_s, max_jobs=settings.max_jobs, max_bytes=settings.max_jobs_bytes
        )
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._live: dict[str, _Live] = {}
        self._backlog: dict[str, Job] = {}  # of an earlier run, in the order of submission
        self._wake = threading.Event()
        self._stopping = False
        self._unrecorded: dict[str, Job] = {}  # ended, but the disk could not take it; after a restart they run again
        self._refused_at = 0.0
        self._swept_at = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the store and take up what an earlier run left unfinished. Does nothing when it runs already.

        Raises ConfigError when data_dir cannot be used.
        """
        with self._lock:
            if self._thread is not None:
                return
            self._store = Store(self._settings.data_dir)
            for job in self._store.unfinished():
                self._store.requeue(job.id)
                self._backlog[job.id] = job
                self.feed.open(job.id, job.owner)
                self.feed.publish(job.id, "queued", {"position": None})
            self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop without ending jobs: the next start goes on with them. Ends every event stream."""
        with self._lock:
            thread, self._stopping = self._thread, True
        self.feed.close()
        self._wake.set()
        if thread is not None:
            thread.join()
            self.store.close()

    @property
    def store(self) -> Store:
        if self._store is None:
            self.start()
        assert self._store is not None
        return self._store

    def submit(self, values: dict[str, Any], *, owner: str, client: str) -> Job:
        """Accept a job: engine first, then its row, so that a full queue refuses without touching the disk.

        `values` are the fields of jobs.JobBody. Raises Overloaded, NotReady, InvalidRequest, StorageError.
        """
        store = self.store
        request = GenerationRequest.of(
            values["prompt"],
            values["num_images"],
            values["seed"],
            sampling=SamplingParams(**{name: values[name] for name in SAMPLING}),
            negative_prompt=values["negative_prompt"],
            client=client,
        )
        generation = self._service.submit(request)
        engine = self._service.engine
        resolved = {name: getattr(generation.sampling, name) for name in SAMPLING}
        seed = request.images[0].seed
        stored = {**values, **resolved, "seed": seed, "model": engine.config.name, "digest": engine.digest}
        job = Job(
            id=f"job-{secrets.token_hex(12)}", owner=owner, status="queued", request=stored, created_at=time.time()
        )
        with self._lock:  # from its row on, others can see the job: a cancel must find it here
            try:
                store.add(job)
            except DalleServerError:
                generation.cancel("the job could not be stored")
                raise
            self.feed.open(job.id, owner)
            live = _Live(job, generation, offset=0)
            if not self._drain(live):  # the answer already tells its place in the queue
                self._watch(live)
        return job

    def cancel(self, job: Job) -> None:
        """Stop an unfinished job within one token; its finished pictures stay."""
        with self._lock:
            live = self._live.get(job.id)
            waiting = self._backlog.pop(job.id, None)
        if live is not None:
            live.cancelled = True
            live.generation.cancel()
            self._wake.set()
        elif waiting is not None:
            self._end(job.id, "cancelled", {"reason": "cancelled by the client"})

    def delete(self, job: Job) -> None:
        self.store.delete(job.id)
        self._unrecorded.pop(job.id, None)

    def current(self, job: Job) -> Job:
        """`job` as its row tells it, or as it ended where the row could not be written."""
        ended = self._unrecorded.get(job.id)
        return job if ended is None else replace(ended, pictures=job.pictures)

    def progress(self, job_id: str) -> dict[str, Any]:
        """position, tokens_done, num_tokens and eta_s, as far as they are known."""
        known = {**self.feed.latest(job_id, "queued"), **self.feed.latest(job_id, "progress")}
        return {name: known.get(name) for name in ("position", "tokens_done", "num_tokens", "eta_s")}

    # -- the thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._tick()
            except Exception:  # without this thread no job would ever end again
                logger.exception("jobs")
            self._wake.wait(TICK_S if self._live else IDLE_S)
            self._wake.clear()

    def _tick(self) -> None:
        self._admit_backlog()
        with self._lock:
            live = list(self._live.values())
        for each in live:
            self._drain(each)
        if self._service.state == "draining" and not self._live:
            self.feed.close()  # a drain waits for open answers; these would never end by themselves
        self._record_ends()
        self._sweep()

    def _admit_backlog(self) -> None:
        """Hand the jobs of an earlier run to the engine, oldest first, as far as its queue takes them."""
        while self._backlog and self._service.state == "ready":
            with self._lock:
                job = next(iter(self._backlog.values()), None)
            if job is None:
                return
            try:
                live = self._resubmit(job)
            except (Overloaded, RateLimited):
                return
            except DalleServerError as error:
                self._end(job.id, "failed", {"error": openai_error(error)})
                live = None
            with self._lock:
                wanted = self._backlog.pop(job.id, None) is not None
            if live is not None:
                live.cancelled = not wanted
                self._watch(live)

    def _resubmit(self, job: Job) -> _Live | None:
        engine = self._service.engine
        request = remaining_request(job, engine.digest)
        if request is None:
            self._end(job.id, "done", {})
            return None
        finished = job.request["num_images"] - len(request.images)
        generation = self._service.submit(request)
        return _Live(job, generation, offset=finished * engine.config.transformer.image_length)

    def _watch(self, live: _Live) -> None:
        with self._lock:
            self._live[live.job.id] = live
        if live.cancelled:
            live.generation.cancel()
        self._steer_previews(live)
        self._wake.set()

    def _steer_previews(self, live: _Live) -> None:
        """One preview for each finished row of the grid, while the job wants them and somebody looks."""
        wanted = live.job.request["preview"] and self.feed.watched(live.job.id, live.job.owner)
        live.generation.preview_every = self._service.engine.config.grid_side if wanted else 0

    def _drain(self, live: _Live) -> bool:
        """Fold what the engine has said since the last time. True when that was the end."""
        self._steer_previews(live)
        try:
            for event in live.generation.events(poll_s=0):
                if event is None:
                    return False
                self._fold(live, event)
        except Exception as error:
            if not isinstance(error, DalleServerError):
                logger.exception("job %s", live.job.id)
            live.generation.cancel("the job failed")
            known = error if isinstance(error, DalleServerError) else GenerationFailed("the picture could not be saved")
            self._end(live.job.id, "failed", {"error": openai_error(known)})
        with self._lock:
            self._live.pop(live.job.id, None)
        return True

    def _fold(self, live: _Live, event: Event) -> None:
        job_id, feed = live.job.id, self.feed
        match event:
            case Queued(position):
                feed.publish(job_id, "queued", {"position": position})
            case Started(queue_s):
                self.store.start(job_id, queue_s)
                feed.publish(job_id, "started", {"queue_s": queue_s})
            case Progress(tokens_done, num_tokens, eta_s):
                counted = {"tokens_done": live.offset + tokens_done, "num_tokens": live.offset + num_tokens}
                feed.publish(job_id, "progress", {**counted, "eta_s": eta_s})
            case Preview(index, tokens_done, pixels):
                encoded = encode_image(pixels, ImageFormat.JPEG, quality=PREVIEW_QUALITY)
                shown = {"index": live.generation.request.images[index].index, "tokens_done": tokens_done}
                feed.publish(job_id, "preview", {**shown, "image": data_url(encoded, ImageFormat.JPEG)})
            case ImageReady(image):
                feed.publish(job_id, "image", image_json(live.job, self._save(live, image)))
            case Done(_, queue_s, total_s):
                self._end(job_id, "done", {"queue_s": queue_s, "total_s": total_s})
            case Failed(error) if not self._goes_on_later():
                self._end(job_id, "failed", {"error": openai_error(error)})
            case Cancelled(reason) if live.cancelled or not self._goes_on_later():
                self._end(job_id, "cancelled", {"reason": reason})

    def _goes_on_later(self) -> bool:
        """A server on its way down ends what it runs; the row stays unfinished and the next start takes it up."""
        return self._stopping or self._service.state == "draining"

    def _save(self, live: _Live, image: GeneratedImage) -> Picture:
        request = live.job.request
        metadata = PictureMetadata.of(
            live.generation.request,
            live.generation.sampling,
            image,
            model=request["model"],
            digest=request["digest"],
        )
        kind = ImageFormat(request["format"])
        data = encode_image(image.pixels, kind, metadata=metadata)
        height_px, width_px = image.pixels.shape[:2]
        return self.store.add_picture(live.job.id, image.key.index, data, f".{kind.value}", (width_px, height_px))

    def _end(self, job_id: str, status: str, data: dict[str, Any]) -> None:
        job = self.store.get(job_id)
        if job is not None:
            error, total_s = data.get("error"), data.get("total_s")
            self._record(replace(job, status=status, error=error, finished_at=time.time(), total_s=total_s))
        if status == "done":
            data = {"images": [] if job is None else [image_json(job, picture) for picture in job.pictures], **data}
        self.feed.publish(job_id, status, data)

    def _record(self, ended: Job) -> None:
        try:
            self.store.finish(ended.id, ended.status, total_s=ended.total_s, error=ended.error)
        except StorageError:  # the store has logged it; whoever watches this job still learns its end
            self._unrecorded[ended.id] = ended
            self._refused_at = time.monotonic()
        else:
            self._unrecorded.pop(ended.id, None)

    def _record_ends(self) -> None:
        if time.monotonic() - self._refused_at >= RECORD_AGAIN_S:
            for ended in list(self._unrecorded.values()):
                self._record(ended)

    def _sweep(self) -> None:
        if time.monotonic() - self._swept_at >= SWEEP_EVERY_S or self._swept_at == 0.0:
            self._swept_at = time.monotonic()
            self.store.sweep(self._retention)


def is_finished(job: Job) -> bool:
    return job.status not in UNFINISHED


def image_json(job: Job, picture: Picture) -> dict[str, Any]:
    """A finished picture as the API shows it."""
    return {
        "index": picture.index,
        "seed": job.request["seed"],
        "url": f"/v1/jobs/{job.id}/pictures/{picture.index}",
        "format": job.request["format"],
        "width_px": picture.width_px,
        "height_px": picture.height_px,
        "size_bytes": picture.size_bytes,
    }
