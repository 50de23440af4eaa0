"""The AUTOMATIC1111 web UI's API, so that Open WebUI, SillyTavern and their like work unmodified."""

from __future__ import annotations

import base64
import binascii
import io
import json
import secrets
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request
from flask.sansio.blueprints import BlueprintSetupState
from PIL import Image

from dalle_server.errors import GenerationCancelled, InvalidRequest, NotSupported
from dalle_server.generation import (
    Cancelled,
    Failed,
    GeneratedImage,
    GenerationRequest,
    ImageKey,
    ImageReady,
    SamplingParams,
)
from dalle_server.pictures.codec import ImageFormat, base64_text, describe_image, encode_image
from dalle_server.pictures.metadata import PNG_KEYWORD, PictureMetadata, find_metadata
from dalle_server.web.automatic1111.infotext import SAMPLER, infotext, parameters
from dalle_server.web.automatic1111.models import resolve_checkpoint
from dalle_server.web.automatic1111.progress import Job, Jobs
from dalle_server.web.automatic1111.schemas import (
    Empty,
    PngInfoBody,
    PngInfoReply,
    ProgressQuery,
    ProgressReply,
    Txt2ImgBody,
    Txt2ImgReply,
)
from dalle_server.web.routing import describe
from dalle_server.web.schemas import read_json, validate
from dalle_server.web.security import client_id
from dalle_server.web.service import Service, current_service
from dalle_server.web.waiting import client_left, watched_events

blueprint = Blueprint("automatic1111", __name__, url_prefix="/sdapi/v1")
_JOBS = "dalle_server_automatic1111_jobs"


@blueprint.record_once
def _make_jobs(state: BlueprintSetupState) -> None:
    state.app.extensions[_JOBS] = Jobs()


def _jobs() -> Jobs:
    jobs: Jobs = current_app.extensions[_JOBS]
    return jobs


@blueprint.post("/txt2img")
@describe(
    "Makes pictures of a prompt",
    access="key",
    cost="pictures",
    owned=False,
    takes="pictures",
    body=Txt2ImgBody,
    reply=Txt2ImgReply,
)
def txt2img() -> Response:
    body = read_json(Txt2ImgBody)
    service = current_service()
    engine = service.engine
    if body.override_settings is not None:
        resolve_checkpoint(body.override_settings.sd_model_checkpoint, engine)
    generation = service.submit(_request(body, service))
    job = Job(generation, engine.config.transformer.image_length)
    with _jobs().track(job):
        images = _collect(job)
    size_px = (body.width or engine.config.image_px, body.height or engine.config.image_px)
    described = [describe_image(image, generation, engine) for image in images]
    files = [
        encode_image(image.pixels, ImageFormat.PNG, metadata=metadata, size_px=size_px)
        for image, metadata in zip(images, described, strict=True)
    ]
    reply = Txt2ImgReply(
        images=[base64_text(file) for file in files] if body.send_images is not False else [],
        parameters=body.model_dump(exclude_none=True),
        info=json.dumps(_info(described, size_px) | {"batch_size": body.batch_size or 1}),
    )
    return jsonify(reply.model_dump())


def _request(body: Txt2ImgBody, service: Service) -> GenerationRequest:
    num_images = (body.batch_size or 1) * (body.n_iter or 1)
    if num_images > service.settings.max_images:
        raise InvalidRequest(
            f"batch_size × n_iter must be at most {service.settings.max_images}, not {num_images}", param="batch_size"
        )
    seed = secrets.randbelow(2**32) if body.seed is None or body.seed < 0 else body.seed
    return GenerationRequest(
        prompt=body.prompt,
        # Not (seed, i): these clients are told a seed for each picture, and it must make that picture alone.
        images=tuple(ImageKey(seed + index) for index in range(num_images)),
        sampling=SamplingParams(condition_scale=body.cfg_scale),
        negative_prompt=body.negative_prompt or "",
        timeout_s=service.settings.request_timeout_s,
        client=client_id(),
    )


def _collect(job: Job) -> list[GeneratedImage]:
    """The finished pictures; after an interrupt, those that were finished by then."""
    images: list[GeneratedImage] = []
    for event in watched_events(job.generation, client_left()):
        job.note(event)
        if isinstance(event, ImageReady):
            images.append(event.image)
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Cancelled) and not images:
            raise GenerationCancelled(event.reason)
    return sorted(images, key=lambda image: image.index)


def _info(described: list[PictureMetadata], size_px: tuple[int, int]) -> dict[str, Any]:
    first = described[0]
    return {
        "prompt": first.prompt,
        "all_prompts": [metadata.prompt for metadata in described],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [metadata.negative_prompt for metadata in described],
        "seed": first.seed,
        "all_seeds": [metadata.seed for metadata in described],
        "width": size_px[0],
        "height": size_px[1],
        "sampler_name": SAMPLER,
        "cfg_scale": first.condition_scale,
        "steps": first.num_tokens,
        "sd_model_name": first.model,
        "sd_model_hash": first.weights_digest[:10],
        "infotexts": [infotext(metadata, size_px) for metadata in described],
    }


@blueprint.post("/img2img")
@describe(
    "Pictures from a picture (not possible yet)",
    access="key",
    cost="pictures",
    owned=False,
    takes="pictures",
    status=501,
)
def img2img() -> Response:
    raise NotSupported("img2img is not supported yet; use /sdapi/v1/txt2img")


@blueprint.get("/progress")
@describe(
    "How far the oldest txt2img request of this client is",
    access="key",
    cost="little",
    owned=True,
    reply=ProgressReply,
    query=ProgressQuery,
)
def progress() -> Response:
    query = validate(ProgressQuery, request.args.to_dict())
    jobs = _jobs().of(client_id())
    if not jobs:
        return jsonify(ProgressReply().model_dump())
    if not query.skip_current_image:
        jobs[0].want_previews()
    return jsonify(jobs[0].describe(with_image=not query.skip_current_image).model_dump())


@blueprint.post("/interrupt")
@describe("Stops this client's txt2img requests", access="key", cost="little", owned=True, reply=Empty)
def interrupt() -> Response:
    for job in _jobs().of(client_id()):
        job.generation.cancel("interrupted")
    return jsonify({})


@blueprint.post("/png-info")
@describe(
    "What a picture says about how it was made",
    access="key",
    cost="little",
    owned=False,
    takes="pictures",
    body=PngInfoBody,
    reply=PngInfoReply,
)
def png_info() -> Response:
    data = _decode(read_json(PngInfoBody).image)
    metadata = find_metadata(data)
    if metadata is None:
        return jsonify(PngInfoReply(info="", items={}, parameters={}).model_dump())
    with Image.open(io.BytesIO(data)) as image:
        size_px = image.size
    reply = PngInfoReply(
        info=infotext(metadata, size_px),
        items={PNG_KEYWORD: metadata.to_json()},
        parameters={
            "Prompt": metadata.prompt,
            "Negative prompt": metadata.negative_prompt,
            **parameters(metadata, size_px),
        },
    )
    return jsonify(reply.model_dump())


def _decode(text: str) -> bytes:
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"image must be base64: {error}", param="image") from None
