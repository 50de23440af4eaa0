"""The AUTOMATIC1111 web UI's API, so that Open WebUI, SillyTavern and their like work unmodified."""

from __future__ import annotations

import io
import json
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request
from PIL import ExifTags, Image

from dalle_server.drawing.form import Form
from dalle_server.errors import InvalidRequest
from dalle_server.generation import unwrap
from dalle_server.models.config import ModelConfig
from dalle_server.pictures.canvas import FORMATS, UNREADABLE, check_size
from dalle_server.pictures.codec import base64_text
from dalle_server.pictures.metadata import PNG_KEYWORD, find_metadata
from dalle_server.request import SamplingParams
from dalle_server.web.access.security import client_id
from dalle_server.web.automatic1111.checkpoints import chosen_model
from dalle_server.web.automatic1111.infotext import (
    KEYWORD,
    SAMPLER,
    Told,
    decode_comment,
    parse_infotext,
    told_by_file,
    told_by_request,
)
from dalle_server.web.automatic1111.models import current_choices
from dalle_server.web.automatic1111.progress import InFlight, Paintings
from dalle_server.web.automatic1111.schemas import (
    Empty,
    Nothing,
    PngInfoBody,
    PngInfoReply,
    ProgressQuery,
    ProgressReply,
    Txt2ImgBody,
    Txt2ImgReply,
)
from dalle_server.web.drawing import Drawing, Order, draw, encoding, hold_place
from dalle_server.web.routing import for_its_owner, for_keys, makes_pictures
from dalle_server.web.schemas import read_json, validate
from dalle_server.web.service import current_service
from dalle_server.web.uploads import decode_base64

blueprint = Blueprint("automatic1111", __name__, url_prefix="/sdapi/v1")


def _paintings() -> Paintings:
    paintings: Paintings = current_app.extensions.setdefault("dalle_server.automatic1111.paintings", Paintings())
    return paintings


@blueprint.post("/txt2img")
@makes_pictures("Makes pictures of a prompt", takes="pictures", body=Txt2ImgBody, reply=Txt2ImgReply)
def txt2img() -> Response:
    hold_place()
    body = read_json(Txt2ImgBody)
    model = chosen_model(body, current_choices())
    size_px = body.size_px(model.engine.config.picture.width_px)
    return answer(body, draw(model, order(body, Form(size_px=size_px), model.engine.config)), {})


def order(body: Txt2ImgBody, form: Form, config: ModelConfig) -> Order:
    return Order(
        prompt=body.words,
        num_images=body.num_images,
        counted_as="batch_size × n_iter",
        seed=None if body.seed is None or body.seed < 0 else body.seed,
        # These clients are told a seed for each picture, and it must make that picture alone.
        seed_each=True,
        sampling=SamplingParams(condition_scale=_guidance(body.cfg_scale, config.max_condition_scale)),
        negative_prompt=body.negative_prompt or "",
        best_of=body.best_of,
        seamless=bool(body.tiling),
        form=form,
    )


def _guidance(wanted: float | None, most: float | None) -> float | None:
    """These clients send 7 with every request, whatever the model is; `info` tells what became of it."""
    return wanted if wanted is None or most is None else min(wanted, most)


def answer(body: Txt2ImgBody, drawing: Drawing, told_too: dict[str, Any]) -> Response:
    """Paints; `told_too` goes into `info`."""
    painting = InFlight(drawing)
    with _paintings().track(painting):
        files, told = _paint(drawing)
    reply = Txt2ImgReply(
        images=[base64_text(file) for file in files] if body.send_images is not False else [],
        parameters=body.model_dump(exclude_none=True, exclude={"init_images", "mask"}),
        info=json.dumps(_info(painting, told) | {"batch_size": body.batch_size or 1} | told_too),
    )
    return jsonify(reply.model_dump())


def _paint(drawing: Drawing) -> tuple[list[bytes], list[Told]]:
    """The finished pictures; after an interrupt those that were finished by then, or else how far the others were."""
    for _ in drawing.events():
        pass
    snapshot = drawing.snapshot
    images = snapshot.images if drawing.interrupted else unwrap(snapshot.end)
    told = [told_by_request(drawing, image.index) for image in images]
    files = [drawing.file(image, {KEYWORD: each.infotext}) for image, each in zip(images, told, strict=True)]
    if images:
        return files, told
    previews = sorted(snapshot.previews.items())
    return (
        [drawing.preview_file(preview.pixels) for _, preview in previews],
        [told_by_request(drawing, position) for position, _ in previews] or [told_by_request(drawing, 0)],
    )


def _info(painting: InFlight, told: list[Told]) -> dict[str, Any]:
    """The web UI's 32 fields (modules/processing.py, Processed.js): its clients' types ask for each of them."""
    first, engine, (width, height) = told[0], painting.drawing.engine, painting.drawing.size_px
    return {
        "prompt": first.prompt,
        "all_prompts": [each.prompt for each in told],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [each.negative_prompt for each in told],
        "seed": first.seed,
        "all_seeds": [each.seed for each in told],
        "subseed": 0,
        "all_subseeds": [0] * len(told),
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": SAMPLER,
        "cfg_scale": painting.drawing.generation.sampling.condition_scale,
        "steps": engine.config.picture.num_tokens,
        "batch_size": 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": painting.drawing.model_name,
        "sd_model_hash": engine.digest[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [each.infotext for each in told],
        "styles": [],
        "job_timestamp": painting.timestamp,
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": first.settings["Version"],
    }


@blueprint.get("/progress")
@for_its_owner("How far the oldest txt2img request of this client is", reply=ProgressReply, query=ProgressQuery)
def progress() -> Response:
    query = validate(ProgressQuery, request.args.to_dict())
    paintings = _paintings().of(client_id())
    if not paintings:
        return jsonify(ProgressReply().model_dump())
    if not query.skip_current_image:
        paintings[0].want_previews()
    with encoding():
        return jsonify(paintings[0].describe(with_image=not query.skip_current_image).model_dump())


@blueprint.post("/interrupt")
@for_its_owner("Stops this client's txt2img requests", reply=Empty)
def interrupt() -> Response:
    _stop()
    return jsonify({})


@blueprint.post("/skip")
@for_its_owner("The same: a request is one run, which ends with what is finished", reply=Nothing)
def skip() -> Response:
    _stop()
    return jsonify(None)


def _stop() -> None:
    for painting in _paintings().of(client_id()):
        painting.stop()


@blueprint.post("/png-info")
@for_keys("What a picture says about how it was made", takes="pictures", body=PngInfoBody, reply=PngInfoReply)
def png_info() -> Response:
    with encoding():
        data = decode_base64(read_json(PngInfoBody).image, "image")
        metadata = find_metadata(data)
        size_px, texts = _texts_of(data)
    if metadata is None:  # of another program: as the web UI answers
        info = texts.pop(KEYWORD, texts.get("exif comment", ""))
        return jsonify(PngInfoReply(info=info, items=texts, parameters=parse_infotext(info)).model_dump())
    # Its weights may have another name here than where it was painted.
    model = current_service().pool.find(metadata.weights_digest)
    told = told_by_file(metadata, size_px, (model and model.name) or metadata.model)
    texts.pop(KEYWORD, None)
    reply = PngInfoReply(
        info=told.infotext,
        items=texts | {PNG_KEYWORD: metadata.to_json()},
        parameters={"Prompt": told.prompt, "Negative prompt": told.negative_prompt, **told.settings},
    )
    return jsonify(reply.model_dump())


def _texts_of(data: bytes) -> tuple[tuple[int, int], dict[str, str]]:
    """(width, height) and the texts of a picture: a PNG's chunks, wherever they stand, and EXIF's comment."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.size, "image")
            image.load()  # a text may stand behind the pixels
            texts = {name: text for name, text in image.info.items() if isinstance(name, str) and isinstance(text, str)}
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except UNREADABLE as error:
        raise InvalidRequest(f"image cannot be read as a picture: {error}", param="image") from None
    if isinstance(comment, bytes) and (decoded := decode_comment(comment)):
        texts["exif comment"] = decoded
    return image.size, texts
