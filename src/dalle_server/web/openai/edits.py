"""Pictures that come in: POST /v1/images/edits, as a form and as JSON, and POST /v1/images/variations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from flask import Blueprint, request
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import FileStorage

from dalle_server.errors import InvalidRequest
from dalle_server.pictures.canvas import Picture, Weights, fit_mask, mask_from_alpha, mask_from_file, read_picture
from dalle_server.pictures.metadata import find_metadata
from dalle_server.repaint import Repaint
from dalle_server.web.drawing import Drawing, Order, draw, encoding, require_room
from dalle_server.web.openai.names import resolve_model
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
from dalle_server.web.openai.stream import preview_every
from dalle_server.web.routing import describe
from dalle_server.web.schemas import read_json, validate
from dalle_server.web.service import current_service
from dalle_server.web.uploads import decode_base64

blueprint = Blueprint("openai_edits", __name__, url_prefix="/v1")

EDIT_STRENGTH = 0.75  # without a mask: so much of the picture is painted anew
VARIATION_STRENGTH = 0.5
CANDIDATES = 4

_over_a_picture = partial(
    describe,
    access="key",
    cost="pictures",
    owned=False,
    takes="pictures",
    body_type="multipart/form-data",
    reply=ImagesReply,
    streams=True,
    bare=True,
)


@blueprint.post("/images/edits")
@_over_a_picture("Repaint a part of a picture, or all of it", body=EditForm)
def edits() -> ResponseReturnValue:
    require_room()
    if request.mimetype == "multipart/form-data":
        body: EditBody = validate(EditForm, request.form.to_dict())
        resolve_model(body.model, current_service().engine)
        image, mask = _only(_files("image", "image[]")), _first(_files("mask"))
    else:
        read = read_json(EditJson)
        body = read
        resolve_model(body.model, current_service().engine)
        image = _only([_referred(each, f"images.{i}") for i, each in enumerate(read.images)])
        mask = None if read.mask is None else _referred(read.mask, "mask")
    with encoding():
        picture = read_picture(image)
        weights = _mask(picture, mask)
    strength = (1.0 if weights is not None else EDIT_STRENGTH) if body.strength is None else body.strength
    over = Repaint(picture=picture, mask=weights, strength=strength, candidates=body.candidates or CANDIDATES)
    return _answer(body, body.prompt, over, "image_edit")


def _mask(picture: Picture, mask: bytes | None) -> Weights | None:
    """The mask file's, or the picture's own holes. Raises InvalidRequest."""
    weights = mask_from_alpha(picture) if mask is None else mask_from_file(read_picture(mask, "mask"))
    return None if weights is None else fit_mask(weights, picture.size_px)


@blueprint.post("/images/variations")
@_over_a_picture("Variations of a picture", body=VariationForm)
def variations() -> ResponseReturnValue:
    require_room()
    body = validate(VariationForm, request.form.to_dict())
    resolve_model(body.model, current_service().engine)
    image = _only(_files("image", "image[]"))
    with encoding():
        picture = read_picture(image)
    strength = VARIATION_STRENGTH if body.strength is None else body.strength
    prompt = body.prompt or _own_prompt(image)
    return _answer(
        body, prompt, Repaint(picture=picture, strength=strength, candidates=body.candidates or 1), "image_edit"
    )


def _own_prompt(image: bytes) -> str:
    """What one of our own pictures says that it shows; of others nothing is known: the unconditional text."""
    try:
        metadata = find_metadata(image)
    except InvalidRequest:  # a GIF, or damaged words in a picture that is readable
        return ""
    return "" if metadata is None else metadata.prompt


def _answer(body: RepaintBody, prompt: str, over: Repaint, kind: str) -> ResponseReturnValue:
    as_file = wants_file(body)
    drawing: Drawing = draw(
        Order(
            prompt=prompt,
            num_images=body.n or 1,
            counted_as="n",
            seed=body.seed,
            first_index=body.image_index,
            sampling=body.sampling,
            negative_prompt=body.negative_prompt or "",
            preview_every=preview_every(body, current_service().engine.config.picture.num_tokens),
            form=replace(body.form, format=as_file) if as_file else body.form,
        ),
        over,
    )
    return answer(drawing, body, as_file, kind)


# -- what was sent


def _files(*names: str) -> list[bytes]:
    found: list[FileStorage] = [file for name in names for file in request.files.getlist(name)]
    if len(found) > MAX_EDIT_IMAGES:
        raise InvalidRequest(f"{names[0]}: {len(found)} pictures are too many; send one", param=names[0])
    return [file.read() for file in found]


def _first(files: list[bytes]) -> bytes | None:
    return files[0] if files and files[0] else None


def _only(images: list[bytes]) -> bytes:
    if not images:
        raise InvalidRequest(
            "image is required: send a PNG, JPEG, WebP or GIF file as the field `image`", param="image"
        )
    if len(images) > 1:
        raise InvalidRequest(
            f"image: {len(images)} pictures were sent, and this model can draw over one; send only that", param="image"
        )
    return images[0]


def _referred(reference: ImageReference, param: str) -> bytes:
    """Raises InvalidRequest, also for addresses: nothing is ever fetched."""
    if (reference.image_url is None) == (reference.file_id is None):
        raise InvalidRequest(f"{param} must have exactly one of image_url and file_id", param=param)
    if reference.image_url is None:
        raise InvalidRequest(
            f"{param}.file_id: no files are kept here; send the picture itself, as a data: URL in image_url",
            param=param,
        )
    return decode_base64(reference.image_url, f"{param}.image_url")
