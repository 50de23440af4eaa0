"""Jobs that wait for the engine: of an earlier run of the server, or of the engine before a fault."""

from __future__ import annotations

import threading

from dalle_server.errors import DalleServerError, Overloaded, RateLimited
from dalle_server.web.errors import openai_error
from dalle_server.web.jobs.ends import Ends
from dalle_server.web.jobs.resume import drawn, remaining_request
from dalle_server.web.jobs.running import Live, Running
from dalle_server.web.jobs.storage.records import Job
from dalle_server.web.jobs.storage.store import Store
from dalle_server.web.service import Service


class Backlog:
    """In the order of submission; a client whose share of the queue is full holds up only himself."""

    def __init__(self, service: Service, running: Running, ends: Ends):
        self._service, self._running, self._ends = service, running, ends
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: Job) -> None:
        with self._lock:
            self._jobs[job.id] = job

    def take(self, job_id: str) -> Job | None:
        """The job, which from then on does not wait any more."""
        with self._lock:
            return self._jobs.pop(job_id, None)

    def admit(self, store: Store) -> None:
        """Hand jobs to the engine, as far as its queue takes them."""
        full: set[str] = set()  # clients
        with self._lock:
            waiting = list(self._jobs.values())
        for job in waiting:
            if self._service.state != "ready":
                return
            if job.request.client in full:
                continue
            try:
                self._admit(store, job)
            except RateLimited:
                full.add(job.request.client)
            except Overloaded:
                return

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
            self._ends.end(store, job, *(end or ("done", {})))

    def _resubmit(self, job: Job) -> Live | None:
        engine = self._service.engine
        request = remaining_request(job, engine.digest)
        if request is None:
            return None
        finished = len(job.request.images) - len(request.images)
        generation = drawn(self._service.submit, request, job.over)
        offset = finished * engine.config.picture.num_tokens
        return Live(job, generation, row_tokens=engine.config.picture.grid_width, offset=offset)
