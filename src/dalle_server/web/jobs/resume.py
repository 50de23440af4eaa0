"""What a job asks the engine for, of which model, and what one that was left unfinished still does."""

from __future__ import annotations

from dataclasses import replace

from dalle_server.drawing.best_of import BestOf
from dalle_server.drawn import Drawn
from dalle_server.errors import GenerationFailed
from dalle_server.request import GenerationRequest, image_keys
from dalle_server.web.jobs.storage.records import Job
from dalle_server.web.pool.model import Model
from dalle_server.web.pool.pool import Pool
from dalle_server.web.service import Service
from dalle_server.web.submitting import submit_new, submit_over


def wanted_model(job: Job, pool: Pool) -> Model:
    """By its weights, else by its name; where there is one model, that. Raises GenerationFailed for one that has gone.

    A name does not tell the weights: `remaining_request` looks at them, when they are loaded.
    """
    found = (pool.find(job.digest) if job.digest else None) or pool.find(job.model)
    if found is None and len(pool.models) == 1:
        return pool.first
    if found is None:
        raise GenerationFailed(f"the job was submitted for {job.model}, which this server no longer has")
    return found


def remaining_request(job: Job, digest: str | None = None) -> GenerationRequest | None:
    """The pictures that are missing, or None; each is a function of the seed and its index, so it is the same one.
    Where the likeliest are to be chosen, all are drawn again: nobody kept the others.

    `digest` is that of the weights now served. Raises GenerationFailed when the job was submitted for others.
    """
    if digest is not None and job.digest != digest:
        raise GenerationFailed(
            f"the job was submitted for {job.model}, but the server now runs other weights; submit it again"
        )
    if job.best_of is not None:
        return None if has_chosen(job) else whole_request(job)
    finished = {picture.index for picture in job.pictures}
    missing = tuple(key for key in job.request.images if key.index not in finished)
    return replace(job.request, images=missing) if missing else None


def has_chosen(job: Job) -> bool:
    """Whether all of the likeliest are stored, with their scores: a picture found again without its row has none."""
    return sum(picture.score is not None for picture in job.pictures) >= len(job.request.images)


def whole_request(job: Job) -> GenerationRequest:
    """All that is drawn for the job, pictures that nobody gets included."""
    if job.best_of is None:
        return job.request
    keys = image_keys(job.best_of, job.seed)
    return replace(job.request, images=keys, logprobs=True)


def drawn(service: Service, model: Model, job: Job, request: GenerationRequest) -> Drawn:
    """`request` is what is to be drawn of the job. Raises what `Service.submitter` does."""
    if job.over is not None:
        return submit_over(service, model, request, job.over.holes)
    new = submit_new(service, model, request, job.form, "num_images" if job.best_of is None else "best_of")
    return new if job.best_of is None else BestOf(new, keep=len(job.request.images))
