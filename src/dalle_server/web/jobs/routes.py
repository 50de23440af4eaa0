"""/v1/jobs: a picture that outlives its connection. Submit, look on, come back later, look back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Blueprint, Flask, Response, jsonify, request

from dalle_server.config import Settings
from dalle_server.errors import NotFound
from dalle_server.pictures.canvas import media_type
from dalle_server.pictures.codec import ImageFormat
from dalle_server.web.access.security import client_id
from dalle_server.web.jobs import submission
from dalle_server.web.jobs.current import EXTENSION, current_jobs, find_job, owner, read_picture_file
from dalle_server.web.jobs.ends import end_data, image_json
from dalle_server.web.jobs.feed import Entry, View
from dalle_server.web.jobs.metrics import JobsCollector
from dalle_server.web.jobs.pump import Jobs
from dalle_server.web.jobs.schemas import JobBody, JobForm, JobList, JobQuery, JobReply, reply_of
from dalle_server.web.jobs.storage.files import GIVEN_IMAGE, GIVEN_MASK
from dalle_server.web.jobs.storage.records import Job
from dalle_server.web.jobs.storage.rows import Query
from dalle_server.web.routing import for_its_owner, makes_pictures
from dalle_server.web.schemas import validate
from dalle_server.web.service import Service
from dalle_server.web.sse import event_stream, format_event
from dalle_server.web.waiting import Silence, client_left

LOOK_S = 1.0  # how often a stream without news asks whether its client is still there
HEARTBEAT_S = 15.0
_EVENT_ID = re.compile(r"[0-9]{1,19}")

blueprint = Blueprint("jobs", __name__, url_prefix="/v1/jobs")


def install(app: Flask, settings: Settings, service: Service) -> Jobs:
    """Register the routes. The returned jobs start with the first request, or when the server calls `start`."""
    jobs = Jobs(settings, service)
    app.extensions[EXTENSION] = jobs
    service.metrics.registry.register(JobsCollector(jobs))
    app.register_blueprint(blueprint)
    return jobs


@blueprint.post("")
@makes_pictures(
    "Submit a job: new pictures, or drawings over a given one",
    owned=True,
    takes="pictures",
    body=JobBody,
    form=JobForm,
    reply=JobReply,
    status=202,
)
def submit() -> tuple[Response, int, dict[str, str]]:
    job = submission.submit()
    return _reply(find_job(job.id)), 202, {"Location": f"{request.script_root}/v1/jobs/{job.id}"}


@blueprint.get("")
@for_its_owner("List your jobs, newest first", reply=JobList, query=JobQuery)
def list_jobs() -> Response:
    query = validate(JobQuery, request.args.to_dict())
    wanted = Query(
        words=query.words,
        status=query.status,
        with_pictures=query.with_pictures,
        before=find_job(query.after, "after").id if query.after else "",
        limit=query.limit + 1,
    )
    found = current_jobs().store.rows.find(owner(), wanted, is_unwanted=client_left())
    data = [job_json(current_jobs().current(job)) for job in found[: query.limit]]
    return jsonify({"object": "list", "data": data, "has_more": len(found) > query.limit})


@blueprint.get("/events")
@for_its_owner("Watch all your running jobs as server-sent events", reply_type="text/event-stream")
def watch_all() -> Response:
    return _watch(current_jobs().feed.join(owner(), client=client_id(), after=_last_event_id()))


@blueprint.get("/<job_id>")
@for_its_owner("A job's state, and its finished pictures", reply=JobReply)
def show(job_id: str) -> Response:
    return _reply(find_job(job_id))


@blueprint.get("/<job_id>/events")
@for_its_owner("Watch a job as server-sent events; Last-Event-ID resumes", reply_type="text/event-stream")
def watch(job_id: str) -> Response:
    job, feed, after = find_job(job_id), current_jobs().feed, _last_event_id()
    if feed.relay is not None and not job.is_finished:
        feed.expect(job.id, job.owner)
        job = find_job(job_id)  # its end may have been told just before
    if not job.is_finished:
        return _watch(feed.join(job.owner, job.id, client=client_id(), after=after))
    if feed.has_told(job.last_event, after):
        return Response(status=204)  # tells an EventSource not to come again
    return event_stream(_retold(job))


@blueprint.post("/<job_id>/cancel")
@for_its_owner("Cancel a job within a token, if it has not ended; its pictures stay", reply=JobReply)
def cancel(job_id: str) -> Response:
    job = find_job(job_id)
    if not job.is_finished:
        current_jobs().cancel(job)
    return _reply(find_job(job_id))


@blueprint.delete("/<job_id>")
@for_its_owner("Cancel an unfinished job within a token; delete a finished one with its pictures")
def delete(job_id: str) -> Response | tuple[Response, int]:
    job = find_job(job_id)
    if job.is_finished:
        current_jobs().delete(job)
        return jsonify({"id": job.id, "object": "job.deleted", "deleted": True})
    current_jobs().cancel(job)
    return _reply(find_job(job_id)), 202


@blueprint.get("/<job_id>/pictures/<int:index>")
@for_its_owner("One finished picture", reply_type="image/png")
def picture(job_id: str, index: int) -> Response:
    job = find_job(job_id)
    kind = ImageFormat(job.format)
    return _file(read_picture_file(job, index), kind.media_type, f"{job.seed}-{index}.{kind.value}")


@blueprint.get("/<job_id>/given/<name>")
@for_its_owner("The picture that a job draws over, or its mask: given/image, given/mask", reply_type="image/png")
def given(job_id: str, name: str) -> Response:
    job, file = find_job(job_id), {"image": GIVEN_IMAGE, "mask": GIVEN_MASK}.get(name)
    if file is None or (found := current_jobs().store.given_file(job, file)) is None:
        raise NotFound(f"job {job_id} was given no {name[:20]!r}", param="name")
    return _file(found, media_type(found), name)


def _file(data: bytes, kind: str, name: str) -> Response:
    response = Response(data, mimetype=kind)
    response.headers["Content-Disposition"] = f'inline; filename="{name}"'
    response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.add_etag()
    response.make_conditional(request, accept_ranges=True, complete_length=len(data))  # in place
    return response


def job_json(job: Job) -> dict[str, Any]:
    """The job as the API shows it: JobReply."""
    images = [image_json(job, picture) for picture in job.pictures]
    return reply_of(job, current_jobs().progress(job.id), images)


def _reply(job: Job) -> Response:
    return jsonify(job_json(job))


def _last_event_id() -> int:
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if _EVENT_ID.fullmatch(text) else 0


def _watch(view: View) -> Response:
    response = event_stream(_told(view, client_left(), Silence(HEARTBEAT_S)))
    response.call_on_close(view.close)
    return response


def _told(view: View, left: Callable[[], bool], silence: Silence) -> Iterator[str]:
    yield ": connected\n\n"  # opens the stream at once, though nothing may happen for long
    for entries in view.entries(LOOK_S):
        if left():
            return
        if entries:
            silence.broken()
            yield _formatted(entries)
        elif silence.is_long():
            silence.broken()
            yield ": keep-alive\n\n"


def _retold(job: Job) -> Iterator[str]:
    """The events of a job that ended long ago, from its row."""
    number = max(1, job.last_event)
    images = [image_json(job, picture) for picture in job.pictures]
    yield _formatted(Entry(number, job.id, "image", {"job": job.id, **image}) for image in images)
    yield _formatted([Entry(number, job.id, job.status, {"job": job.id, **end_data(job)})])


def _formatted(entries: Iterable[Entry]) -> str:
    return "".join(format_event(entry.event, entry.data, entry.number) for entry in entries)
