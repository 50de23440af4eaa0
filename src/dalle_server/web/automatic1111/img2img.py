"""POST /sdapi/v1/img2img: drawing over a picture, all of it or what a mask shows."""

from __future__ import annotations

import numpy as np
from flask import Blueprint, Response
from PIL import Image, ImageOps

from dalle_server.drawing.form import Form
from dalle_server.drawing.repaint import Repaint
from dalle_server.errors import InvalidRequest
from dalle_server.pictures.canvas import Picture, Weights, fit_mask, read_picture
from dalle_server.web.automatic1111.checkpoints import chosen_model
from dalle_server.web.automatic1111.models import current_choices
from dalle_server.web.automatic1111.routes import answer, order
from dalle_server.web.automatic1111.schemas import Img2ImgBody, Txt2ImgReply
from dalle_server.web.drawing import draw, encoding, hold_place
from dalle_server.web.routing import makes_pictures
from dalle_server.web.schemas import read_json
from dalle_server.web.uploads import decode_base64

blueprint = Blueprint("automatic1111_img2img", __name__, url_prefix="/sdapi/v1")

STRENGTH, MASK_BLUR_PX, PADDING_PX = 0.75, 4, 32  # the web UI's own defaults
CANDIDATES = 4  # for a mask
CUT = 1  # the resize_mode that keeps the shape


@blueprint.post("/img2img")
@makes_pictures("Makes pictures from a picture", takes="pictures", body=Img2ImgBody, reply=Txt2ImgReply)
def img2img() -> Response:
    hold_place()
    body = read_json(Img2ImgBody)
    model = chosen_model(body, current_choices())
    hold_place(model)
    image = decode_base64(body.init_images[0], "init_images")
    mask_file = decode_base64(body.mask, "mask") if body.mask else None
    with encoding():
        picture = read_picture(image, "init_images")
        mask = None if mask_file is None else _mask(mask_file, picture.size_px, bool(body.inpainting_mask_invert))
        size_px = _size(body, picture.size_px)
        picture = Picture(np.asarray(_resized(Image.fromarray(picture.pixels), size_px, body.resize_mode)), None)
        if mask is not None:
            mask = np.clip(np.asarray(_resized(Image.fromarray(mask), size_px, body.resize_mode)), 0.0, 1.0)
            _check_left(mask)
    strength = STRENGTH if body.denoising_strength is None else body.denoising_strength
    over = Repaint(
        picture=picture,
        mask=mask,
        strength=strength,
        candidates=body.candidates or (CANDIDATES if mask is not None else 1),
        blend_px=round(MASK_BLUR_PX if body.mask_blur is None else body.mask_blur),
        context=_context(body, mask),
    )
    ignored = {} if body.inpainting_fill is None else {"Ignored": "inpainting_fill"}
    return answer(
        body,
        draw(model, order(body, Form(), model.engine.config), over),
        {"denoising_strength": strength, "extra_generation_params": ignored},
    )


def _size(body: Img2ImgBody, own_px: tuple[int, int]) -> tuple[int, int]:
    """The asked size; left out, the picture's own. Raises InvalidRequest."""
    if not (body.width or body.height or body.enable_hr):
        return own_px
    asked = body.model_copy(update={"width": body.width or own_px[0], "height": body.height or own_px[1]})
    return asked.size_px(own_px[0]) or own_px


def _resized(image: Image.Image, size_px: tuple[int, int], mode: int | None) -> Image.Image:
    if image.size == size_px:
        return image
    if mode == CUT:
        return ImageOps.fit(image, size_px, Image.Resampling.LANCZOS)
    return image.resize(size_px, Image.Resampling.LANCZOS)


def _mask(file: bytes, size_px: tuple[int, int], inverted: bool) -> Weights:
    """As the web UI reads it: opaque is repainted where something is transparent, else white; nothing by halves."""
    mask = read_picture(file, "mask")
    grey = np.asarray(Image.fromarray(mask.pixels).convert("L")) if mask.alpha is None else mask.alpha
    weights = ((grey > 127) != inverted).astype(np.float32)
    if not weights.any():
        raise InvalidRequest("mask frees nothing: make what is to be repainted white", param="mask")
    return fit_mask(weights, size_px)


def _check_left(mask: Weights) -> None:
    """Raises InvalidRequest where what is to be repainted was cut off."""
    if not mask.any():
        message = "mask frees nothing in what resize_mode 1 leaves of the picture; use resize_mode 0, or its own shape"
        raise InvalidRequest(message, param="mask")


def _context(body: Img2ImgBody, mask: Weights | None) -> float | None:
    """The share of the mask's side that inpaint_full_res shows around it."""
    if mask is None or not body.inpaint_full_res:
        return None
    padding = PADDING_PX if body.inpaint_full_res_padding is None else body.inpaint_full_res_padding
    rows, columns = np.flatnonzero(mask.max(axis=1)), np.flatnonzero(mask.max(axis=0))
    return padding / max(int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
