"""The OpenAI Images API, as the official `openai` client speaks it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
from flask import Blueprint, Response, jsonify, request
from flask.typing import ResponseReturnValue
from numpy.typing import NDArray

from dalle_server.drawing.best_of import score
from dalle_server.errors import InvalidRequest, StorageError
from dalle_server.pictures.codec import ImageFormat, base64_text
from dalle_server.web import picture_urls as pictures
from dalle_server.web.drawing import Drawing, draw
from dalle_server.web.openai import stream
from dalle_server.web.openai.names import base64_only, chosen_model
from dalle_server.web.openai.schemas import (
    ImageData,
    ImageGenerationBody,
    ImagesReply,
    OutputBody,
    Usage,
)
from dalle_server.web.routing import makes_pictures
from dalle_server.web.schemas import read_json

blueprint = Blueprint("openai", __name__, url_prefix="/v1")
logger = logging.getLogger(__name__)


@blueprint.post("/images/generations")
@makes_pictures("Make pictures from a prompt", body=ImageGenerationBody, reply=ImagesReply, streams=True, bare=True)
def generations() -> ResponseReturnValue:
    body = read_json(ImageGenerationBody)
    model = chosen_model(body.model)
    as_file = wants_file(body)
    order = body.order(body.prompt, model.engine.config.picture.num_tokens, as_file)
    drawing = draw(model, replace(order, logprobs=bool(body.logprobs)))
    return answer(drawing, body, as_file)


def answer(
    drawing: Drawing, body: OutputBody, as_file: ImageFormat | None, kind: str = "image_generation"
) -> ResponseReturnValue:
    """The drawing in the form that was asked for; `kind` begins the names of a stream's events."""
    if body.stream:
        return stream.respond(drawing, body, kind)
    if as_file:
        return _file(drawing)
    return jsonify(_reply(drawing, body).model_dump(exclude_none=True))


def wants_file(body: OutputBody) -> ImageFormat | None:
    """The format of a bare file as the answer: one is asked for by response_format, or by the Accept header."""
    accepted = next((kind for kind, _ in request.accept_mimetypes), "")
    by_field = body.response_format == "file"
    if not by_field and (not accepted.startswith("image/") or body.stream or (body.n or 1) > 1 or body.response_format):
        return None
    if body.stream or (body.n or 1) > 1:
        raise InvalidRequest("response_format file is for one picture; leave out n and stream", param="response_format")
    named = next((format for format in ImageFormat if format.media_type == accepted), ImageFormat.PNG)
    return ImageFormat(body.output_format) if body.output_format else named


def _file(drawing: Drawing) -> Response:
    (image,) = drawing.images()
    return Response(drawing.file(image), mimetype=drawing.order.form.format.media_type)


def _reply(drawing: Drawing, body: OutputBody) -> ImagesReply:
    images = drawing.images()
    as_url, as_base64 = _result_forms(body)
    data = []
    for image in images:
        file = drawing.file(image)
        data.append(
            ImageData(
                b64_json=base64_text(file) if as_base64 else None,
                url=_address(file, drawing.order.form.format, body) if as_url else None,
                seed=image.key.seed,
                score=None if image.logprobs is None else round(score(image), 4),
                logprobs=rounded(image.logprobs[:, 0])
                if drawing.order.logprobs and image.logprobs is not None
                else None,
                image_index=drawing.index_of(image.index),
            )
        )
    width, height = drawing.size_px
    return ImagesReply(
        created=int(time.time()),
        data=data,
        output_format=drawing.order.form.format.value,
        quality=body.quality,
        safety_identifier=body.safety_identifier or body.user,
        size=f"{width}x{height}",
        usage=Usage.of(drawing.generation.text_token_count, drawing.num_drawn * len(images[0].tokens)),
    )


def _address(file: bytes, format: ImageFormat, body: OutputBody) -> str | None:
    """Where the picture is kept. A full disk costs nobody a picture that the answer holds too; raises StorageError for
    those who asked for the address alone.
    """
    try:
        return pictures.keep(file, format)
    except StorageError as error:
        if body.response_format == "url":
            raise
        logger.warning("%s", error.message)
        return None


def rounded(logprobs: NDArray[np.float32]) -> list[float]:
    """Four digits say all that matters, and JSON stays short."""
    return [round(float(value), 4) for value in logprobs]


def _result_forms(body: OutputBody) -> tuple[bool, bool]:
    """(as url, as base64)."""
    if body.response_format is not None:
        return body.response_format == "url", body.response_format == "b64_json"
    return not base64_only(body.model), True
