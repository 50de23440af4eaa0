"""Rows and files compared when the store opens: what is missing on one side is made from the other.

Nothing that cannot be explained is deleted: it is moved aside, and the log says where.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from PIL import Image

from dalle_server.drawing.form import Form
from dalle_server.drawing.repaint import INDEX_BITS
from dalle_server.errors import InvalidRequest
from dalle_server.pictures.codec import ImageFormat
from dalle_server.pictures.metadata import FORMATS, PictureMetadata, find_metadata
from dalle_server.request import GenerationRequest
from dalle_server.web.jobs.storage.files import GIVEN, PICTURE_FILE, RECORD, PictureFiles
from dalle_server.web.jobs.storage.records import Job, JobPicture, from_values, to_values
from dalle_server.web.jobs.storage.rows import JobRows

LOST = {
    "message": "the record of this job was lost while it ran; these are the pictures that it had finished",
    "type": "server_error",
    "param": None,
    "code": "storage_error",
}

# What was asked for.
KEPT = ("request", "model", "digest", "format", "form", "preview", "best_of", "over", "given_bytes")

log = logging.getLogger(__name__)


def record_of(job: Job) -> bytes:
    """What stands in job.json."""
    kept = ("id", "owner", "created_at", *KEPT)
    values = to_values(job)
    return json.dumps({name: values[name] for name in kept}, indent=1).encode()


def finish_deletions(rows: JobRows, files: PictureFiles) -> None:
    """Those that were cut off. Raises StorageError and OSError."""
    for job_id in files.deleted():
        rows.delete([job_id])
        files.delete_job(job_id)
        files.forget_deleted(job_id)


def repair(rows: JobRows, files: PictureFiles) -> None:
    """Raises StorageError and OSError."""
    finish_deletions(rows, files)
    found = dict(files.jobs())
    told: dict[str, list[str]] = defaultdict(list)
    for job in rows.all():
        _heal(job, found.pop(job.id, []), rows, files, told)
    rebuilt = [_rebuilt(job_id, names, files, told) for job_id, names in found.items()]
    # In the order of submission, by which pages and retention go: the names of folders are drawn by lot.
    for job in sorted(filter(None, rebuilt), key=lambda job: (job.created_at, job.id)):
        rows.add(job)
        told["jobs rebuilt from their files"].append(job.id)
    for what, names in told.items():
        log.warning("%s: %d (%s)", what, len(names), ", ".join(names[:3]) + (", …" if len(names) > 3 else ""))


def _heal(job: Job, names: list[str], rows: JobRows, files: PictureFiles, told: dict[str, list[str]]) -> None:
    """A row that is there: its pictures are those whose files are."""
    missing = [picture for picture in job.pictures if picture.file not in names and not files.has(picture.file)]
    if missing:
        rows.drop_pictures(job.id, [picture.index for picture in missing])
        told["pictures whose files have gone"] += [picture.file for picture in missing]
    known = {picture.file for picture in job.pictures}
    strange = [name for name in _pictures(names) if name not in known]
    described = _described(strange, files, told, job)
    for name, (picture, _) in described.items():
        rows.put_picture(job.id, picture)
        told["pictures found again"].append(name)
    if job.is_damaged:
        _describe_again(job, names, rows, files, told)


def _rebuilt(job_id: str, names: list[str], files: PictureFiles, told: dict[str, list[str]]) -> Job | None:
    """No row: the job as its own files tell it."""
    recorded = _recorded(job_id, names, files)
    described = _described(_pictures(names), files, told, recorded)
    job = recorded or _described_job(job_id, described, files)
    if job is None:  # the server stopped before it had accepted the job, or its database was lost
        for name in [name for name in names if name.endswith(GIVEN)]:
            told[f"given pictures of unknown jobs, moved to {files.set_aside(name)}"].append(name)
        return None
    pictures = tuple(picture for picture, _ in described.values())
    is_whole = len(pictures) >= len(job.request.images)
    status, error = ("done", None) if is_whole else ("failed", LOST)
    return replace(job, pictures=pictures, status=status, error=error, finished_at=time.time())


def _describe_again(job: Job, names: list[str], rows: JobRows, files: PictureFiles, told: dict[str, list[str]]) -> None:
    """A row that cannot be read, but whose files can."""
    mine = _pictures(names)
    known = _recorded(job.id, names, files) or _described_job(job.id, _described(mine, files, told, job), files)
    if known is None:
        rows.update(job.id, status="failed")  # its record stays as it is
        told["jobs whose record cannot be read"].append(job.id)
        return
    values = to_values(known)
    is_done = len(mine) >= len(known.request.images)
    rows.update(
        job.id,
        **{name: values[name] for name in KEPT},
        status="done" if is_done else "failed",
        error=None if is_done else LOST,
        finished_at=job.finished_at or time.time(),
    )
    told["records read again from their files"].append(job.id)


def _pictures(names: Iterable[str]) -> list[str]:
    return [name for name in names if PICTURE_FILE.fullmatch(name.rsplit("/", 1)[-1])]


def _described(
    names: Iterable[str], files: PictureFiles, told: dict[str, list[str]], job: Job | None
) -> dict[str, tuple[JobPicture, PictureMetadata]]:
    """The pictures among the files; what is none of ours is moved aside. `job` is whose they are, as far as known."""
    found = {}
    are_chosen = job is not None and job.best_of is not None  # of many: named by their places, not by their noise
    for name in names:
        data = files.read(name)
        match = PICTURE_FILE.fullmatch(name.rsplit("/", 1)[-1])
        try:
            told_by = find_metadata(data)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()  # a file that was cut has a good head
                width_px, height_px = image.size
        except (InvalidRequest, OSError, ValueError, SyntaxError):
            told_by = None
        if told_by is None or match is None or not (are_chosen or _noise(told_by) == int(match[1])):
            told[f"files that are no pictures of ours, moved to {files.set_aside(name)}"].append(name)
            continue
        noise = _noise(told_by) if are_chosen else None
        found[name] = JobPicture(int(match[1]), name, width_px, height_px, len(data), noise), told_by
    return found


def _noise(told_by: PictureMetadata) -> int:
    """Of the picture itself: a candidate of it has a higher one."""
    index: int = told_by.image_index % 2**INDEX_BITS
    return index


def _recorded(job_id: str, names: list[str], files: PictureFiles) -> Job | None:
    """From job.json."""
    name = f"{job_id}/{RECORD}"
    if name not in names:
        return None
    absent = ("started_at", "finished_at", "queue_s", "total_s", "error")
    try:
        values = {**json.loads(files.read(name)), **dict.fromkeys(absent), "faults": 0, "last_event": 0}
        values |= {"status": "queued"}
        _check_kinds(values)
        job = from_values(values)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return None if job.is_damaged or job.id != job_id else job


def _check_kinds(values: dict[str, Any]) -> None:
    kinds = {"id": str, "owner": str, "model": str, "digest": str, "format": str, "preview": bool, "created_at": float}
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise TypeError(f"{name} is no {kind.__name__}")


def _described_job(
    job_id: str, described: dict[str, tuple[JobPicture, PictureMetadata]], files: PictureFiles
) -> Job | None:
    """From the pictures' own recipes: all but whose it was, and how many more there were to be."""
    if not described:
        return None
    name, (picture, recipe) = next(iter(described.items()))
    alone = recipe.request()
    count = 1 + max(picture.index for picture, _ in described.values())
    request = GenerationRequest.of(
        alone.prompt,
        min(count, 1024),
        recipe.seed,
        sampling=alone.sampling,
        negative_prompt=alone.negative_prompt,
        forced_tokens=alone.forced_tokens if recipe.forced else (),
    )
    return Job(
        id=job_id,
        owner="",
        request=request,
        model=recipe.model,
        digest=recipe.weights_digest,
        form=Form(format=ImageFormat(name.rsplit(".", 1)[-1]), size_px=(picture.width_px, picture.height_px)),
        created_at=files.changed_at(name),
    )
