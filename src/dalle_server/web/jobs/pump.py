"""Submit, cancel and delete jobs; one thread keeps them going."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from dalle_server.config import Settings
from dalle_server.drawing.form import Form
from dalle_server.errors import ConfigError, DalleServerError, NotReady, StorageError
from dalle_server.request import GenerationRequest
from dalle_server.web.jobs.backlog import Backlog
from dalle_server.web.jobs.ends import Ends
from dalle_server.web.jobs.feed import Feed
from dalle_server.web.jobs.resume import drawn, whole_request
from dalle_server.web.jobs.running import Live, Running
from dalle_server.web.jobs.sharing import Sharing, shared
from dalle_server.web.jobs.storage.database import GONE
from dalle_server.web.jobs.storage.given import Given, Over
from dalle_server.web.jobs.storage.records import Job
from dalle_server.web.jobs.storage.retention import Retention
from dalle_server.web.jobs.storage.store import AT_ONCE, Store
from dalle_server.web.pool.model import Model
from dalle_server.web.service import Service

TICK_S = 0.025  # how often running generations are read: the delay of an event, and the most that previews cost
IDLE_S = 1.0
SWEEP_EVERY_S = 300.0
OPEN_AGAIN_S = 5.0  # after data_dir was full
END_S = 2.0  # how long the thread may take to end what it is at; then its database calls are stopped

logger = logging.getLogger(__name__)


class Jobs:
    """Any thread may call. Opens the store when it starts, or as soon as there is room for it."""

    def __init__(self, settings: Settings, service: Service):
        self.feed = Feed(max_viewers=settings.max_event_streams)
        self.trouble: str | None = None  # why there are no jobs now
        self._settings = settings
        self._service = service
        self._retention = Retention(
            max_age_s=settings.job_retention_s, max_jobs=settings.max_jobs, max_bytes=settings.max_jobs_bytes
        )
        self._ends = Ends(self.feed)
        self._wake = threading.Event()
        self._running = Running(self.feed, self._ends, self._goes_on_later, lambda job: self._backlog.add(job))
        self._backlog = Backlog(service, self._running, self._ends, self._wake.set)
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._sharing: Sharing | None = None
        self._is_open = False  # the store is there, and what an earlier run left is taken up
        self._stopping = False
        self._swept_ends = -1
        self._swept_at = self._tried_at = float("-inf")
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the store and take up what an earlier run left unfinished. Does nothing when it runs already.

        Raises ConfigError when data_dir can never be used. Where it is only full, the server goes on without jobs,
        says so (`trouble`), and tries again.
        """
        if self._thread is None:  # asked without the lock, under which rows are written
            self._start_once()

    def _start_once(self) -> None:
        with self._lock:
            if self._thread is None:
                self._open()
                self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop without ending jobs: the next start goes on with them. Ends every event stream."""
        with self._lock:
            thread, self._stopping = self._thread, True
        self.feed.close()
        self._wake.set()
        if thread is not None:
            thread.join(END_S)
        if self._sharing is not None:
            self._sharing.close()
        if self._store is not None:
            self._store.close()
        if thread is not None:
            thread.join(END_S)

    @property
    def store(self) -> Store:
        """Raises StorageError while there is no room for one."""
        self.start()
        if self._store is None:
            raise StorageError(f"jobs are off: {self.trouble}")
        return self._store

    def submit(
        self,
        model: Model,
        request: GenerationRequest,
        *,
        owner: str,
        form: Form,
        preview: bool,
        best_of: int | None = None,
        over: Over | None = None,
        given: Given | None = None,
    ) -> Job:
        """Accept a job of a model that the caller holds: engine first, then its row, so that a full queue refuses
        without touching the disk.

        With `over`, `given` are its files. `best_of`: so many are drawn, and the likeliest are the request's pictures.
        Raises Overloaded, NotReady, InvalidRequest, StorageError.
        """
        store = self.store
        if not self._is_open:
            raise StorageError(f"jobs are off: {self.trouble}")
        engine = model.engine
        job = Job(
            id=f"job-{secrets.token_hex(12)}",
            owner=owner,
            request=request,
            model=model.name,
            digest=engine.digest,
            form=form,
            preview=preview,
            best_of=best_of,
            over=over,
            created_at=time.time(),
        )
        with ExitStack() as otherwise:
            held = otherwise.enter_context(closing(self._service.pool.keep(model)))
            generation = drawn(self._service, model, job, whole_request(job))
            otherwise.callback(generation.cancel, "the job could not be stored")
            job = replace(job, request=replace(request, sampling=generation.sampling))
            if given is not None:
                otherwise.callback(store.drop_given, job)
                store.add_given(job, given)
            self._begin(store, Live(job, generation, held, row_tokens=engine.config.picture.grid_width))
            otherwise.pop_all()  # all of it is the job's now
        self._wake.set()
        return job

    def _begin(self, store: Store, live: Live) -> None:
        with self._lock:  # from its row on, others can see the job: a cancel must find it here
            store.add(live.job)
            self.feed.open(live.job.id, live.job.owner)
            if not self._running.read(store, live):  # the answer already tells its place in the queue
                self._running.watch(live)

    def cancel(self, job: Job) -> None:
        """Stop an unfinished job within one token; its finished pictures stay."""
        if not self.cancel_here(job.id) and self._sharing is not None:
            self._sharing.cancel_elsewhere(job.id)

    def cancel_here(self, job_id: str) -> bool:
        """False for a job that this server does not have."""
        with self._lock:
            waiting = self._backlog.take(job_id)
            is_here = waiting is not None or self._running.cancel(job_id)
            if waiting is not None:
                self._backlog.end(self.store, waiting, "cancelled", {"reason": "cancelled by the client"})
        self._wake.set()
        return is_here

    def local_ids(self) -> set[str]:
        """Of the jobs that this server has, of several on one database."""
        return self._running.ids() | self._backlog.ids()

    def lacks(self, job_id: str) -> bool:
        """That an unfinished row is this server's, and nothing here knows of it."""
        with self._lock:  # a row is written a moment before its job runs, and after it was taken from those that wait
            return job_id not in self.local_ids() and not self._ends.keeps(job_id)

    def take(self, job: Job) -> None:
        """Draw it, when there is room."""
        self._backlog.add(job)
        self.feed.open(job.id, job.owner)
        self.feed.publish(job.id, "queued", {"position": None})

    def drop(self, job_id: str) -> None:
        """Another server has it."""
        self._backlog.take(job_id)
        self._running.drop(job_id)

    def delete(self, job: Job) -> None:
        self.store.delete(job.id)
        self._ends.forget(job.id)

    def current(self, job: Job) -> Job:
        """`job` as its row tells it, or as it ended where the row could not be written."""
        return self._ends.current(job)

    def progress(self, job_id: str) -> dict[str, Any]:
        """position, tokens_done, num_tokens and eta_s, as far as they are known."""
        known = self._running.progress(job_id)
        if known is None:  # it waits, or another server has it
            known = {**self.feed.latest(job_id, "queued"), **self.feed.latest(job_id, "progress")}
        return {name: known.get(name) for name in ("position", "tokens_done", "num_tokens", "eta_s")}

    # -- the thread

    def _run(self) -> None:
        while not self._stopping:
            if not self._try_tick():
                self._backlog.let_go()  # perhaps it was not reached, and what it keeps would be kept for nothing
            self._wake.wait(TICK_S if self._running else IDLE_S)
            self._wake.clear()
        self._backlog.let_go()
        self._running.let_go()

    def _try_tick(self) -> bool:
        try:
            self._tick()
            return True
        except NotReady:  # the store was closed meanwhile, or its database is away
            logger.debug("jobs wait for their database")
        except DalleServerError as error:
            logger.warning("jobs: %s", error.message)
            self._wake.wait(IDLE_S)
        except Exception:  # without this thread no job would ever end again
            logger.exception("jobs")
            self._wake.wait(IDLE_S)
        return False

    def _tick(self) -> None:
        if self._service.state == "draining" and not self._running:
            self.feed.close()  # a drain waits for open answers; these would never end by themselves
        if not self._is_open and time.monotonic() - self._tried_at >= OPEN_AGAIN_S:
            self._open()
        if self._store is None:
            return
        store = self._store
        self._running.read_all(store)
        if self._is_open:
            away = None if self._sharing is None else self._sharing.trouble
            self._tell_trouble(away if store.rows.database.is_there else GONE)
        if self._sharing is not None and not self._goes_on_later():
            self._sharing.look()
        self._backlog.admit(store)
        self._ends.record_again(store)
        self._sweep(store)

    def _open(self) -> None:
        """The store, and what an earlier run left. On a full disk the first may work and the second not: then jobs
        can be looked at and deleted, which makes room. Raises ConfigError.
        """
        self._tried_at = time.monotonic()
        try:
            if self._store is None:
                settings = self._settings
                self._store = Store(
                    settings.data_dir, settings.database, settings.picture_store, lease_s=settings.job_lease_s
                )
            self.feed.begin(self._store.rows.count_up("runs"))
            taken = self._store.take_up()
            if self._sharing is None:
                self._sharing = shared(self._store, self.feed, self)
        except DalleServerError as error:
            if isinstance(error, ConfigError):
                raise
            self._tell_trouble(error.message)
            return
        for job in taken:
            self.take(job)
        self._is_open = True
        self._tell_trouble(None)

    def _tell_trouble(self, message: str | None) -> None:
        if message is not None and self.trouble != message:
            logger.error("the server goes on without jobs: %s", message)
        self.trouble = message
        if message is None:
            self._service.notes.pop("jobs", None)
        else:
            self._service.notes["jobs"] = message

    def _sweep(self, store: Store) -> None:
        """Now and then, and whenever jobs have ended."""
        ends = self._ends.count
        is_due = time.monotonic() - self._swept_at >= SWEEP_EVERY_S
        if not is_due and (ends == self._swept_ends or not store.is_over(self._retention)):
            self._swept_ends = ends
            return
        if store.sweep(self._retention) < AT_ONCE:  # else there may be more; the next tick goes on
            self._swept_at, self._swept_ends = time.monotonic(), ends

    def _goes_on_later(self) -> bool:
        """A server on its way down ends what it runs; the row stays unfinished and the next start takes it up."""
        return self._stopping or self._service.state == "draining"
