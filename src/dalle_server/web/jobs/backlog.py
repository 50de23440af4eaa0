"""Jobs that wait for the engine: of an earlier run of the server, or of the engine before a fault."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

from dalle_server.errors import DalleServerError, NotReady, Overloaded, RateLimited
from dalle_server.web.errors import openai_error
from dalle_server.web.jobs.claims import Claims
from dalle_server.web.jobs.ends import Ends
from dalle_server.web.jobs.resume import drawn, remaining_request, wanted_model
from dalle_server.web.jobs.running import Live, Running
from dalle_server.web.jobs.storage.records import Job
from dalle_server.web.jobs.storage.store import Store
from dalle_server.web.pool.pool import Hold
from dalle_server.web.service import Service

EVERYBODY = "*"


class Backlog:
    """In the order of submission; a client whose share of the queue is full holds up only himself, and a model
    that is full or not loaded only its own jobs. `tell` is called when a model is there that jobs waited for.
    """

    def __init__(self, service: Service, running: Running, ends: Ends, tell: Callable[[], None]):
        self._service, self._running, self._ends = service, running, ends
        self._claims = Claims(service.pool, tell)
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        with self._lock:
            self._jobs[job.id] = job

    def ids(self) -> set[str]:
        with self._lock:
            return set(self._jobs)

    def take(self, job_id: str) -> Job | None:
        """The job, which from then on does not wait any more."""
        with self._lock:
            return self._jobs.pop(job_id, None)

    def admit(self, store: Store) -> None:
        """Hand jobs to the engine, as far as its queue takes them. To be called again and again, also without jobs."""
        try:
            self._admit_all(store)
        finally:
            self._claims.end_round()

    def let_go(self) -> None:
        """Of every model, when there is no next `admit` for now."""
        self._claims.let_go()

    def _admit_all(self, store: Store) -> None:
        full: set[tuple[str, str]] = set()  # model and client
        with self._lock:
            waiting = list(self._jobs.values())
        for job in waiting:
            if self._service.state != "ready":
                return
            if {(job.model, job.request.client), (job.model, EVERYBODY)} & full:
                continue
            try:
                self._admit(store, job)
            except RateLimited:
                full.add((job.model, job.request.client))
            except Overloaded:  # so is NotReady, while its model is not loaded
                full.add((job.model, EVERYBODY))

    def _admit(self, store: Store, job: Job) -> None:
        """Raises RateLimited and Overloaded; then it goes on waiting."""
        live, end = None, None
        try:
            live = self._resubmit(job)
        except (RateLimited, Overloaded):
            raise
        except DalleServerError as error:
            end = "failed", {"error": openai_error(error)}
        wanted = self.take(job.id) is not None
        if live is not None:
            live.cancelled = not wanted
            self._running.watch(live)
        elif wanted:
            self.end(store, job, *(end or ("done", {})))

    def end(self, store: Store, job: Job, status: str, data: dict[str, Any]) -> None:
        """Of a job that was taken from here. Raises NotReady, and then it is here again."""
        try:
            self._ends.end(store, job, status, data)
        except NotReady:
            self.add(job)
            raise

    def _resubmit(self, job: Job) -> Live | None:
        """None where no picture is missing."""
        if remaining_request(job) is None:
            return None
        pool = self._service.pool
        model = wanted_model(job, pool)
        self._claims.check(model)
        with ExitStack() as otherwise:
            live = self._submitted(job, otherwise.enter_context(closing(pool.keep(model))))
            if live is not None:
                otherwise.pop_all()
        return live

    def _submitted(self, job: Job, held: Hold) -> Live | None:
        engine = held.model.engine
        request = remaining_request(job, engine.digest)
        if request is None:
            return None
        window = engine.config.picture
        finished = 0 if job.best_of is not None else len(job.request.images) - len(request.images)
        generation = drawn(self._service, held.model, job, request)
        shape = job.form.shape(window, seamless=request.seamless) if job.over is None else None
        tokens = window.num_tokens * (1 if shape is None else len(shape.places))
        return Live(job, generation, held, row_tokens=window.grid_width, offset=finished * tokens)
