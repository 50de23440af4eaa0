"""The AUTOMATIC1111 API's lists: the checkpoints, one sampler, and what else its clients ask for on start."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Blueprint, Response, current_app, jsonify
from pydantic import BaseModel

from dalle_server.web.access.security import client_id
from dalle_server.web.automatic1111.checkpoints import Choices, current_checkpoint, find_checkpoint, title
from dalle_server.web.automatic1111.extras import UPSCALERS
from dalle_server.web.automatic1111.infotext import SAMPLER
from dalle_server.web.automatic1111.schemas import (
    CheckpointItem,
    Empty,
    OptionsBody,
    OptionsReply,
    SamplerItem,
    SchedulerItem,
    UpscalerItem,
    VaeItem,
)
from dalle_server.web.pool.using import use_model
from dalle_server.web.routing import for_keys
from dalle_server.web.schemas import read_json
from dalle_server.web.service import current_service

blueprint = Blueprint("automatic1111_models", __name__, url_prefix="/sdapi/v1")


def current_choices() -> Choices:
    choices: Choices = current_app.extensions.setdefault("dalle_server.automatic1111.choices", Choices())
    return choices


def _listed(items: Sequence[BaseModel]) -> Response:
    return jsonify([item.model_dump() for item in items])


@blueprint.get("/options")
@for_keys("The checkpoint that this client draws with", reply=OptionsReply)
def options() -> Response:
    current_service().check_started()
    model = current_checkpoint(current_choices())
    return jsonify(OptionsReply(sd_model_checkpoint=title(model), sd_checkpoint_hash=model.digest).model_dump())


@blueprint.post("/options")
@for_keys(
    "Chooses the checkpoint that this client draws with from now on, and loads it; other options are ignored",
    body=OptionsBody,
    reply=Empty,
)
def set_options() -> Response:
    asked = read_json(OptionsBody).sd_model_checkpoint
    current_service().check_started()
    if asked:
        model = use_model(find_checkpoint(asked))
        current_choices().choose(client_id(), model.name)
    return jsonify({})


@blueprint.get("/sd-models")
@for_keys("The checkpoints", reply=CheckpointItem, many=True)
def sd_models() -> Response:
    service = current_service()
    service.check_started()
    return _listed(
        [
            CheckpointItem(
                title=title(model),
                model_name=model.name,
                hash=model.digest[:10],
                sha256=model.digest,
                filename=model.name,
                state=model.state,
                size_bytes=model.card.size_bytes if model.card else 0,
            )
            for model in service.pool.models
        ]
    )


@blueprint.get("/sd-vae")
@for_keys("The decoder from tokens to pixels", reply=VaeItem, many=True)
def sd_vae() -> Response:
    return _listed([VaeItem(model_name="VQGAN", filename="VQGAN")])


@blueprint.get("/samplers")
@for_keys("How tokens are drawn", reply=SamplerItem, many=True)
def samplers() -> Response:
    return _listed([SamplerItem(name=SAMPLER, aliases=[], options={})])


@blueprint.get("/schedulers")
@for_keys("Noise schedules: an autoregressive model has none to choose", reply=SchedulerItem, many=True)
def schedulers() -> Response:
    return _listed([SchedulerItem(name="automatic", label="Automatic")])


@blueprint.get("/upscalers")
@for_keys("How a picture reaches the asked size", reply=UpscalerItem, many=True)
def upscalers() -> Response:
    return _listed([UpscalerItem(name=name) for name in UPSCALERS])
