"""A job and its pictures as the rest of the program sees them, and as a row keeps them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from dalle_server import checks
from dalle_server.drawing.form import Form
from dalle_server.errors import InvalidRequest
from dalle_server.pictures.codec import ImageFormat
from dalle_server.request import MAX_IMAGES, GenerationRequest, SamplingParams
from dalle_server.web.jobs.storage.given import Over

UNFINISHED = ("queued", "running")
TERMINAL = ("done", "failed", "cancelled")
JOB_ID = re.compile(r"job-\w{1,60}", re.ASCII)
DAMAGED = "(the record of this job is damaged)"  # stands where its prompt stood


@dataclass(frozen=True, slots=True)
class JobPicture:
    """One finished picture of a job: `file` is its name among the picture files.

    `index` counts the job's pictures. It is the noise's too, but not where the likeliest of many were chosen.
    """

    index: int
    file: str
    width_px: int
    height_px: int
    size_bytes: int
    noise: int | None = None  # the index of the key of a chosen one
    score: float | None = None  # its log-likelihood

    @property
    def image_index(self) -> int:
        """With the job's seed it makes this picture again."""
        return self.index if self.noise is None else self.noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request that outlives its connection, how to show it, and what became of it. Times are Unix seconds."""

    id: str
    owner: str  # of whom it is: a key, or "" where no keys are asked for
    request: GenerationRequest  # seed and sampling resolved; its client is whom fairness counts against
    model: str
    digest: str  # of the weights that it was submitted for
    form: Form = field(default_factory=Form)
    preview: bool = True
    best_of: int | None = None  # so many are drawn, and the likeliest are the request's pictures
    status: str = "queued"
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    queue_s: float | None = None
    total_s: float | None = None
    error: dict[str, Any] | None = None
    faults: int = 0  # of the engine, while it ran
    cancel_asked: bool = False  # through another server than its holder
    last_event: int = 0  # the number of the event that told its end
    over: Over | None = None  # a given picture that its own are drawn over
    pictures: tuple[JobPicture, ...] = field(default=())
    is_damaged: bool = False

    @property
    def format(self) -> str:
        return self.form.format.value

    @property
    def seed(self) -> int:
        return self.request.images[0].seed

    @property
    def is_finished(self) -> bool:
        return self.status not in UNFINISHED


def searchable(text: str) -> str:
    """Text as searches compare it. No database takes a NUL."""
    return text.casefold().replace("\0", " ")


def to_values(job: Job) -> dict[str, Any]:
    """The columns of a new row, `search` included."""
    plain = ("id", "owner", "status", "model", "digest", "format", "preview", "best_of")
    times = ("created_at", "started_at", "finished_at")
    return {
        **{name: getattr(job, name) for name in (*plain, *times)},
        "request": json.dumps(job.request.to_dict()),
        "search": searchable(f"{job.request.prompt} {job.seed}"),
        "error": None if job.error is None else json.dumps(job.error),
        "form": json.dumps(wire) if (wire := job.form.to_dict()) else None,
        "over": None if job.over is None else job.over.to_json(),
        "given_bytes": 0 if job.over is None else job.over.size_bytes,
    }


def from_values(row: dict[str, Any], pictures: tuple[JobPicture, ...] = ()) -> Job:
    """A row as a job. One that cannot be read is a failed job that says so: it must cost no other."""
    names = ("id", "owner", "model", "digest", "preview", "created_at", "started_at", "finished_at")
    plain = {name: row[name] for name in (*names, "queue_s", "total_s", "faults", "last_event")}
    plain["cancel_asked"] = bool(row.get("cancel_asked"))
    try:
        request, error = GenerationRequest.from_dict(json.loads(row["request"])), _error(row["error"])
        over = Over.from_json(row["over"]) if row.get("over") else None
        form = Form.from_dict(json.loads(row.get("form") or "{}"), ImageFormat(row["format"]))
        best_of = _best_of(row.get("best_of"), request)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidRequest) as fault:
        reason = {"message": f"the record of this job cannot be read: {fault}"[:300], "code": "storage_error"}
        damaged = {"type": "server_error", "param": None, **reason}
        request = GenerationRequest.of(DAMAGED, seed=0, sampling=SamplingParams.reference_defaults())
        known = next((format for format in ImageFormat if format.value == row["format"]), ImageFormat.PNG)
        told: dict[str, Any] = {"form": Form(format=known), "status": "failed", "error": damaged, "is_damaged": True}
        best_of = row.get("best_of")  # repair asks whether its pictures were chosen
        told["best_of"] = best_of if isinstance(best_of, int) else None
        return Job(**plain, **told, request=request, pictures=pictures)
    told = {"form": form, "status": row["status"], "error": error, "over": over, "best_of": best_of}
    return Job(**plain, **told, request=request, pictures=pictures)


def _best_of(value: Any, request: GenerationRequest) -> int | None:
    return None if value is None else checks.whole_number("best_of", value, len(request.images), MAX_IMAGES)


def _error(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    error = json.loads(text)
    if not isinstance(error, dict):
        raise ValueError("its error is no object")
    return error
