"""POST /v1/jobs read: a request for new pictures, or for drawings over a given one."""

from __future__ import annotations

from flask import request

from dalle_server.drawing.repaint import Plan, Repaint
from dalle_server.errors import InvalidRequest
from dalle_server.request import GenerationRequest, image_keys, require_words
from dalle_server.web.access.security import client_id
from dalle_server.web.drawing import check_best_of, check_pixels, encoding, hold_place
from dalle_server.web.jobs.current import current_jobs, find_job, owner, read_picture_file
from dalle_server.web.jobs.schemas import GalleryPicture, JobBody, JobFields, JobForm
from dalle_server.web.jobs.storage.given import Given
from dalle_server.web.jobs.storage.records import Job
from dalle_server.web.openai.names import chosen_model
from dalle_server.web.schemas import read_json, validate
from dalle_server.web.service import current_service
from dalle_server.web.uploads import decode_base64, form_fields, form_file

NEED_AN_IMAGE = ("mask", "strength", "candidates", "keep_tokens", "grow")


def submit() -> Job:
    """The current HTTP request as an accepted job. Raises what `Jobs.submit` does, NotFound and NotSupported."""
    hold_place()
    body, image, mask = _read()
    limit = current_service().settings.max_images
    if body.num_images > limit:
        raise InvalidRequest(f"num_images must be at most {limit}, not {body.num_images}", param="num_images")
    check_best_of(body.best_of, body.num_images, "num_images", is_over=image is not None)
    model, seamless, form = chosen_model(body.model), body.seamless, body.form
    if image is None:
        _refuse_lonely(body, mask)
        require_words(body.prompt)
        check_pixels(form, body.num_images, model.engine, None)
        given, over, words = None, None, (body.prompt, body.negative_prompt or "", body.sampling)
    else:
        hold_place(model)
        form.check_over()
        given = Given(image, mask)
        with encoding():
            repaint = _repaint(body, given)
            check_pixels(form, body.num_images, model.engine, repaint)
            over = given.over(Plan.of(repaint, model.engine))
        words = repaint.words(body.prompt, body.negative_prompt, body.sampling)
        seamless = seamless or repaint.is_seamless
    prompt, negative_prompt, sampling = words
    wanted = GenerationRequest(
        prompt=prompt,
        images=image_keys(body.num_images, body.seed),
        sampling=sampling,
        negative_prompt=negative_prompt,
        seamless=seamless,
        client=client_id(),
    )
    return current_jobs().submit(
        model,
        wanted,
        owner=owner(),
        form=form,
        preview=body.preview,
        best_of=body.best_of,
        over=over,
        given=given,
    )


def _read() -> tuple[JobFields, bytes | None, bytes | None]:
    """The fields, the image and the mask."""
    if request.mimetype == "multipart/form-data":
        return validate(JobForm, form_fields()), form_file("image"), form_file("mask")
    body = read_json(JobBody)
    mask = None if body.mask is None else decode_base64(body.mask, "mask")
    match body.image:
        case GalleryPicture(job=job_id, index=index):
            return body, read_picture_file(find_job(job_id, "image.job"), index, "image.index"), mask
        case str(text):
            return body, decode_base64(text, "image"), mask
    return body, None, mask


def _refuse_lonely(body: JobFields, mask: bytes | None) -> None:
    """Fields that say how a picture is drawn over, where there is none."""
    given = {**{name: getattr(body, name, None) for name in NEED_AN_IMAGE}, "mask": mask}
    for name, value in given.items():
        if value:
            raise InvalidRequest(f"{name} is for drawing over a picture; send one as image", param=name)


def _repaint(body: JobFields, given: Given) -> Repaint:
    """Without words, a mask and tokens to keep it is a variation."""
    if not body.prompt and given.mask is None and not body.keep_tokens:
        return Repaint.variation(given.image, strength=body.strength, candidates=body.candidates)
    return body.over(given.image, given.mask)
