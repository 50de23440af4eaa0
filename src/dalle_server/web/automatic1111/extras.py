"""The AUTOMATIC1111 API's "extras": a picture made larger, by Lanczos or nearest neighbour, as they are named."""

from __future__ import annotations

import math

import numpy as np
from flask import Blueprint, Response, jsonify
from PIL import Image
from pydantic import BaseModel, Field

from dalle_server.drawing.sizes import MAX_SIDE_PX
from dalle_server.errors import InvalidRequest
from dalle_server.pictures.canvas import read_picture
from dalle_server.pictures.codec import ImageFormat, base64_text, encode_image
from dalle_server.web.drawing import MAX_PIXELS, encoding
from dalle_server.web.routing import makes_pictures
from dalle_server.web.schemas import LenientBody, LenientWhole, read_json
from dalle_server.web.uploads import decode_base64

blueprint = Blueprint("automatic1111_extras", __name__, url_prefix="/sdapi/v1")

UPSCALERS = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
MAX_BATCH = 64


class ExtrasBody(LenientBody):
    """What both routes take. Face restoration and a second upscaler are ignored: there are none."""

    resize_mode: LenientWhole = Field(
        0, ge=0, le=1, description="0: by upscaling_resize; 1: to upscaling_resize_w and _h"
    )
    upscaling_resize: float = Field(2, gt=0, le=16)
    upscaling_resize_w: LenientWhole = Field(512, ge=1, le=MAX_SIDE_PX)
    upscaling_resize_h: LenientWhole = Field(512, ge=1, le=MAX_SIDE_PX)
    upscaling_crop: bool = Field(True, description="cut to the asked size what the picture's shape makes too much")
    upscaler_1: str = Field("None", description="None, Lanczos or Nearest")

    def target(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(width, height) before cutting."""
        width, height = size_px
        if self.resize_mode == 0:
            scale = self.upscaling_resize
        else:
            wide, high = self.upscaling_resize_w / width, self.upscaling_resize_h / height
            scale = max(wide, high)
        return max(1, round(width * scale)), max(1, round(height * scale))


class SingleBody(ExtrasBody):
    image: str = Field(description="base64, or a data URL")


class BatchItem(LenientBody):
    data: str
    name: str = ""


class BatchBody(ExtrasBody):
    imageList: list[BatchItem] = Field(max_length=MAX_BATCH)


class SingleReply(BaseModel):
    html_info: str = ""
    image: str  # base64 PNG


class BatchReply(BaseModel):
    html_info: str = ""
    images: list[str]


@blueprint.post("/extra-single-image")
@makes_pictures("Make a picture larger", takes="pictures", body=SingleBody, reply=SingleReply)
def single() -> Response:
    with encoding():
        body = read_json(SingleBody)
    return jsonify(SingleReply(image=_enlarged([body.image], body)[0]).model_dump())


@blueprint.post("/extra-batch-images")
@makes_pictures("Make pictures larger", takes="pictures", body=BatchBody, reply=BatchReply)
def batch() -> Response:
    with encoding():
        body = read_json(BatchBody)
    return jsonify(BatchReply(images=_enlarged([item.data for item in body.imageList], body)).model_dump())


def _enlarged(images: list[str], body: ExtrasBody) -> list[str]:
    """Base64 → base64 PNG. Raises InvalidRequest."""
    if body.upscaler_1 not in UPSCALERS:
        raise InvalidRequest(
            f"upscaler_1 must be one of {', '.join(UPSCALERS)}, not {body.upscaler_1[:60]!r}", param="upscaler_1"
        )
    left_px, results = MAX_PIXELS, []
    for text in images:
        with encoding():
            picture = read_picture(decode_base64(text, "image"))
            target = picture.size_px if UPSCALERS[body.upscaler_1] is None else body.target(picture.size_px)
            left_px -= math.prod(target)
            if left_px < 0:
                raise InvalidRequest(
                    f"the pictures must be smaller: with this one, of {target[0]}x{target[1]}, they have more than "
                    f"{MAX_PIXELS:,} pixels",
                    param="upscaling_resize",
                )
            results.append(base64_text(_resized(Image.fromarray(picture.pixels), target, body)))
    return results


def _resized(image: Image.Image, target: tuple[int, int], body: ExtrasBody) -> bytes:
    filter = UPSCALERS[body.upscaler_1]
    if filter is not None:
        image = image.resize(target, filter)
        if body.resize_mode == 1 and body.upscaling_crop:
            width, height = body.upscaling_resize_w, body.upscaling_resize_h
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
    return encode_image(np.asarray(image), ImageFormat.PNG)
