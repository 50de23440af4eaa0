"""What a job that an earlier run of the server left unfinished still asks for."""

from __future__ import annotations

from dalle_server.errors import GenerationFailed
from dalle_server.generation import GenerationRequest, ImageKey, SamplingParams
from dalle_server.web.jobs.storage import Job

SAMPLING = ("temperature", "top_k", "top_p", "condition_scale")


def remaining_request(job: Job, digest: str) -> GenerationRequest | None:
    """The pictures that are missing, or None; each is a function of the seed and its index, so it is the same one.

    `digest` is that of the weights now served. Raises GenerationFailed when the job was submitted for others.
    """
    wanted = job.request
    if wanted["digest"] != digest:
        raise GenerationFailed(
            f"the job was submitted for {wanted['model']}, but the server now runs other weights; submit it again"
        )
    finished = {picture.index for picture in job.pictures}
    missing = tuple(ImageKey(wanted["seed"], index) for index in range(wanted["num_images"]) if index not in finished)
    if not missing:
        return None
    return GenerationRequest(
        prompt=wanted["prompt"],
        images=missing,
        sampling=SamplingParams(**{name: wanted[name] for name in SAMPLING}),
        negative_prompt=wanted["negative_prompt"],
        client=job.owner,
    )
