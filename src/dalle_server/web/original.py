"""The API of the original DALL-E server: `GET /` and `POST /dalle`."""

from __future__ import annotations

import logging
import time

from flask import Blueprint, Response, make_response, redirect, request, url_for
from pydantic import BaseModel, Field

from dalle_server.checks import is_blank
from dalle_server.errors import GenerationCancelled, InvalidRequest, NotReady
from dalle_server.generation import GenerationRequest
from dalle_server.pictures.codec import ImageFormat, base64_text, encode_image
from dalle_server.pictures.metadata import PictureMetadata
from dalle_server.pictures.saving import save_pictures
from dalle_server.web.routing import describe
from dalle_server.web.schemas import Body, read_json
from dalle_server.web.security import client_id
from dalle_server.web.service import Service, current_service
from dalle_server.web.waiting import POLL_S, client_left, collect

blueprint = Blueprint("original", __name__)
logger = logging.getLogger(__name__)


class DalleBody(Body):
    text: str = Field(description="What the pictures show.")
    num_images: int = Field(1, ge=1, description="How many; the server's max_images is the most.")


class DalleReply(BaseModel):
    generatedImages: list[str] = Field(description="The pictures, each a base64 file.")
    generatedImgs: list[str] = Field(description="The same, for clients of the first release.")
    generatedImgsFormat: str = Field(description="JPEG or PNG.")


@blueprint.get("/")
@describe(
    "Says hello; browsers are pointed to the playground",
    access="anyone",
    cost="little",
    owned=False,
    vital=True,
    reply_type="text/plain",
)
def hello() -> Response:
    # Every browser names text/html when it opens an address; no client of the original API does.
    wants_page = any(kind == "text/html" for kind, _ in request.accept_mimetypes)
    reply = make_response(redirect(url_for("playground.page")) if wants_page else "hello world")
    if not wants_page:
        reply.content_type = "text/plain; charset=utf-8"
    reply.vary.add("Accept")
    return reply


@blueprint.post("/dalle")
@describe(
    "Makes pictures of a text, as the original server did",
    access="key",
    cost="pictures",
    owned=False,
    body=DalleBody,
    reply=DalleReply,
)
def dalle() -> dict[str, object]:
    service = current_service()
    settings = service.settings
    body = read_json(DalleBody)
    if is_blank(body.text):
        raise InvalidRequest("text must not be empty; describe the picture you want", param="text")
    if body.num_images > settings.max_images:
        raise InvalidRequest(
            f"num_images must lie between 1 and {settings.max_images}, not {body.num_images}", param="num_images"
        )
    _await_model(service)
    request = GenerationRequest.of(body.text, body.num_images, timeout_s=settings.request_timeout_s, client=client_id())
    generation = service.submit(request)
    image_format = ImageFormat[settings.img_format]
    engine = service.engine
    pictures = []
    for image in collect(generation):
        metadata = PictureMetadata.of(
            request, generation.sampling, image, model=engine.config.name, digest=engine.digest
        )
        pictures.append(encode_image(image.pixels, image_format, metadata=metadata))
    if settings.save_to_disk:
        _save(service, body.text, pictures, image_format)
    encoded = [base64_text(picture) for picture in pictures]
    return {"generatedImages": encoded, "generatedImgs": encoded, "generatedImgsFormat": settings.img_format}


def _await_model(service: Service) -> None:
    """The original answered only once its model was there; its clients wait, up to the request's time limit."""
    left = client_left()
    end = time.monotonic() + service.settings.request_timeout_s
    while not service.wait_until_loaded(POLL_S):
        if left():
            raise GenerationCancelled("the client left")
        if time.monotonic() > end:
            raise NotReady("the model is still loading; try again shortly", retry_after_s=30)


def _save(service: Service, prompt: str, pictures: list[bytes], image_format: ImageFormat) -> None:
    """A full disk must not cost the client pictures that are already made: it is logged, not answered."""
    try:
        save_pictures(service.settings.output_dir, prompt, pictures, image_format.value)
    except OSError as error:
        # Not the error itself: it names the directory, which names the prompt.
        reason = error.strerror or type(error).__name__
        logger.error("could not save pictures under %s: %s", service.settings.output_dir, reason)
