"""POST /v1/images/score: how likely the model thinks a picture is, token for token, given a prompt."""

from __future__ import annotations

import math

import numpy as np
from flask import Blueprint, Response, jsonify

from dalle_server.drawing.repaint import Repaint, own_recipe
from dalle_server.pictures.canvas import read_picture
from dalle_server.web.drawing import Order, draw, encoding, hold_place
from dalle_server.web.openai.names import model_with_room
from dalle_server.web.openai.routes import rounded
from dalle_server.web.openai.schemas import ScoreBody, ScoreReply
from dalle_server.web.routing import makes_pictures
from dalle_server.web.schemas import read_json
from dalle_server.web.uploads import decode_base64

blueprint = Blueprint("openai_score", __name__, url_prefix="/v1")


@blueprint.post("/images/score")
@makes_pictures(
    "How likely each token of a picture is, given a prompt", takes="pictures", body=ScoreBody, reply=ScoreReply
)
def score() -> Response:
    hold_place()
    body = read_json(ScoreBody)
    model = model_with_room(body.model)
    file = decode_base64(body.image, "image")
    with encoding():
        picture = Repaint(picture=read_picture(file), recipe=own_recipe(file), strength=0.0)
    order = Order(
        prompt=body.prompt,
        seed=0,
        sampling=body.sampling,
        negative_prompt=body.negative_prompt or "",
        logprobs=True,
    )
    (image,) = draw(model, order, picture).images()
    assert image.logprobs is not None
    grid = model.engine.config.picture
    reply = ScoreReply(
        model=model.name,
        grid_width=grid.grid_width,
        grid_height=grid.grid_height,
        total=round(float(image.logprobs[:, 0].astype(np.float64).sum()), 4),
        logprobs=rounded(image.logprobs[:, 0]),
        sampled_logprobs=[value if math.isfinite(value) else None for value in rounded(image.logprobs[:, 1])],
    )
    return jsonify(reply.model_dump())
