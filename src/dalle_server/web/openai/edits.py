"""Pictures that come in: POST /v1/images/edits, as a form and as JSON, and POST /v1/images/variations."""

from __future__ import annotations

from functools import partial

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from dalle_server.drawing.repaint import Repaint
from dalle_server.errors import InvalidRequest
from dalle_server.web.drawing import draw, encoding, hold_place
from dalle_server.web.openai.names import model_with_room
from dalle_server.web.openai.routes import answer, wants_file
from dalle_server.web.openai.schemas import (
    MAX_EDIT_IMAGES,
    EditBody,
    EditForm,
    EditJson,
    ImageReference,
    ImagesReply,
    RepaintBody,
    VariationForm,
)
from dalle_server.web.pool.model import Model
from dalle_server.web.routing import makes_pictures
from dalle_server.web.schemas import read_json, validate
from dalle_server.web.uploads import decode_base64, form_fields, form_file, form_files

blueprint = Blueprint("openai_edits", __name__, url_prefix="/v1")


_over_a_picture = partial(makes_pictures, takes="pictures", reply=ImagesReply, streams=True, bare=True)


@blueprint.post("/images/edits")
@_over_a_picture("Repaint a part of a picture, or all of it", body=EditJson, form=EditForm)
def edits() -> ResponseReturnValue:
    hold_place()
    if request.mimetype == "multipart/form-data":
        body: EditBody = validate(EditForm, form_fields())
        model = model_with_room(body.model)
        image, mask = only_one(_images()), form_file("mask")
    else:
        read = read_json(EditJson)
        body = read
        model = model_with_room(body.model)
        image = only_one([referred(each, f"images.{i}") for i, each in enumerate(read.images)])
        mask = None if read.mask is None else referred(read.mask, "mask")
    with encoding():
        over = body.over(image, mask)
    if body.prompt is None and over.recipe is None:
        raise InvalidRequest("prompt is required", param="prompt")
    return _answer(model, body, body.prompt, over)


@blueprint.post("/images/variations")
@_over_a_picture("Variations of a picture", form=VariationForm)
def variations() -> ResponseReturnValue:
    hold_place()
    body = validate(VariationForm, form_fields())
    for name, given in (("mask", form_file("mask")), ("grow", body.grow)):
        if given:
            message = f"{name} is for /v1/images/edits: a variation draws all of the picture anew"
            raise InvalidRequest(message, param=name)
    model = model_with_room(body.model)
    image = only_one(_images())
    with encoding():
        if body.keep_tokens:
            over = body.over(image, None)
        else:
            over = Repaint.variation(image, strength=body.strength, candidates=body.candidates)
    return _answer(model, body, body.prompt, over)


def _answer(model: Model, body: RepaintBody, prompt: str | None, over: Repaint) -> ResponseReturnValue:
    as_file = wants_file(body)
    order = body.order_over(over, prompt, model.engine.config.picture.num_tokens, as_file)
    drawing = draw(model, order, over)
    return answer(drawing, body, as_file, "image_edit")


# -- what was sent


def _images() -> list[bytes]:
    found = form_files("image", "image[]")
    if len(found) > MAX_EDIT_IMAGES:
        raise InvalidRequest(f"image: {len(found)} pictures are too many; send one", param="image")
    return found


def only_one(images: list[bytes]) -> bytes:
    if not images:
        raise InvalidRequest(
            "image is required: send a PNG, JPEG, WebP or GIF file as the field `image`", param="image"
        )
    if len(images) > 1:
        raise InvalidRequest(
            f"image: {len(images)} pictures were sent, and this model can draw over one; send only that", param="image"
        )
    return images[0]


def referred(reference: ImageReference, param: str) -> bytes:
    """Raises InvalidRequest, also for addresses: nothing is ever fetched."""
    if (reference.image_url is None) == (reference.file_id is None):
        raise InvalidRequest(f"{param} must have exactly one of image_url and file_id", param=param)
    if reference.image_url is None:
        raise InvalidRequest(
            f"{param}.file_id: no files are kept here; send the picture itself, as a data: URL in image_url",
            param=param,
        )
    return decode_base64(reference.image_url, f"{param}.image_url")
