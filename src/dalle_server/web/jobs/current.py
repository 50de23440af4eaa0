"""The jobs of the current HTTP request's client."""

from __future__ import annotations

from flask import current_app

from dalle_server.errors import NotFound
from dalle_server.web.access.security import client_id
from dalle_server.web.jobs.pump import Jobs
from dalle_server.web.jobs.storage.records import JOB_ID, Job
from dalle_server.web.service import current_service

EXTENSION = "dalle_server.jobs"


def current_jobs() -> Jobs:
    jobs: Jobs = current_app.extensions[EXTENSION]
    jobs.start()
    return jobs


def owner() -> str:
    """Whose jobs these are. A server without keys has one gallery, shared by all who reach it."""
    return client_id() if current_service().settings.api_keys else ""


def find_job(job_id: str, param: str = "id") -> Job:
    """Another key's job is as absent as one that never was. Raises NotFound."""
    job = current_jobs().store.rows.get(job_id) if JOB_ID.fullmatch(job_id) else None
    if job is None or job.owner != owner():
        raise NotFound(f"there is no job {job_id[:60]!r}", param=param)
    return current_jobs().current(job)


def read_picture_file(job: Job, index: int, param: str = "index") -> bytes:
    """A finished picture, as it lies there. Raises NotFound."""
    store = current_jobs().store
    found = next((picture for picture in job.pictures if picture.index == index), None)
    data = None if found is None else store.read(found)
    if found is not None and data is None:
        store.forget(job, found)
    if data is None:
        raise NotFound(f"job {job.id} has no picture {index}", param=param)
    return data
