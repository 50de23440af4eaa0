"""The API of the original DALL-E server: `GET /`, and `POST /dalle`, which its own front end calls `POST /generate`."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, make_response, redirect, request, url_for
from pydantic import BaseModel, Field

from dalle_server.config import Settings
from dalle_server.drawing.form import Form
from dalle_server.pictures.codec import ImageFormat, base64_text
from dalle_server.pictures.saving import save_pictures
from dalle_server.request import require_words
from dalle_server.web.drawing import Order, draw
from dalle_server.web.pool.using import find_model, use_model, wait_until_started
from dalle_server.web.routing import for_anyone, makes_pictures
from dalle_server.web.schemas import Body, Whole, read_json
from dalle_server.web.service import current_service

blueprint = Blueprint("original", __name__)
logger = logging.getLogger(__name__)


class DalleBody(Body):
    text: str = Field(description="What the pictures show.")
    num_images: Whole = Field(1, ge=1, description="How many; the server's max_images is the most.")


class DalleReply(BaseModel):
    generatedImages: list[str] = Field(description="The pictures, each a base64 file.")
    generatedImgs: list[str] = Field(description="The same, for clients of the first release.")
    generatedImgsFormat: str = Field(description="JPEG or PNG.")


@blueprint.get("/")
@for_anyone(
    "Says hello; browsers are pointed to the playground",
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
@blueprint.post("/generate")
@makes_pictures("Makes pictures of a text, as the original server did", body=DalleBody, reply=DalleReply)
def dalle() -> dict[str, object]:
    settings = current_service().settings
    body = read_json(DalleBody)
    require_words(body.text, "text")
    wait_until_started()
    model = use_model(find_model(None))
    form = Form(format=ImageFormat[settings.img_format])
    drawing = draw(model, Order(prompt=body.text, num_images=body.num_images, form=form))
    files = [drawing.file(image) for image in drawing.images()]
    if settings.save_to_disk:
        _save(settings, body.text, files)
    encoded = [base64_text(file) for file in files]
    return {"generatedImages": encoded, "generatedImgs": encoded, "generatedImgsFormat": settings.img_format}


def _save(settings: Settings, prompt: str, files: list[bytes]) -> None:
    """A full disk must not cost the client pictures that are already made: it is logged, not answered."""
    try:
        save_pictures(settings.output_dir, prompt, files, ImageFormat[settings.img_format].value)
    except OSError as error:
        # Not the error itself: it names the directory, which names the prompt.
        reason = error.strerror or type(error).__name__
        logger.error("could not save pictures under %s: %s", settings.output_dir, reason)
