"""The AUTOMATIC1111 API's lists: one checkpoint, one sampler, and what else its clients ask for on start."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Blueprint, Response, jsonify
from pydantic import BaseModel, RootModel

from dalle_server.errors import NotFound
from dalle_server.web.automatic1111.extras import UPSCALERS
from dalle_server.web.automatic1111.infotext import SAMPLER
from dalle_server.web.automatic1111.schemas import (
    Empty,
    ModelItem,
    OptionsBody,
    OptionsReply,
    SamplerItem,
    SchedulerItem,
    UpscalerItem,
    VaeItem,
)
from dalle_server.web.routing import describe
from dalle_server.web.schemas import read_json
from dalle_server.web.service import Engine, current_service

blueprint = Blueprint("automatic1111_models", __name__, url_prefix="/sdapi/v1")


def title(engine: Engine) -> str:
    """How the web UI names a checkpoint: file name, and ten digits of its hash."""
    return f"{engine.config.name} [{engine.digest[:10]}]"


def resolve_checkpoint(name: str | None, engine: Engine) -> None:
    """Raises NotFound unless `name` is the loaded checkpoint's title, name or hash, or nothing."""
    known = {title(engine), engine.config.name, engine.digest[:10], engine.digest}
    if name and name not in known:
        raise NotFound(
            f"sd_model_checkpoint {name!r} is not loaded; this server runs {title(engine)!r} and cannot switch",
            param="sd_model_checkpoint",
        )


class ModelItems(RootModel[list[ModelItem]]):
    pass


class SamplerItems(RootModel[list[SamplerItem]]):
    pass


class SchedulerItems(RootModel[list[SchedulerItem]]):
    pass


class UpscalerItems(RootModel[list[UpscalerItem]]):
    pass


class VaeItems(RootModel[list[VaeItem]]):
    pass


def _listed(items: Sequence[BaseModel]) -> Response:
    return jsonify([item.model_dump() for item in items])


@blueprint.get("/options")
@describe("The loaded checkpoint", access="key", cost="little", owned=False, reply=OptionsReply)
def options() -> Response:
    engine = current_service().engine
    return jsonify(OptionsReply(sd_model_checkpoint=title(engine), sd_checkpoint_hash=engine.digest).model_dump())


@blueprint.post("/options")
@describe(
    "Confirms the loaded checkpoint; another is refused, other options ignored",
    access="key",
    cost="little",
    owned=False,
    body=OptionsBody,
    reply=Empty,
)
def set_options() -> Response:
    resolve_checkpoint(read_json(OptionsBody).sd_model_checkpoint, current_service().engine)
    return jsonify({})


@blueprint.get("/sd-models")
@describe("The loaded checkpoint, as a list", access="key", cost="little", owned=False, reply=ModelItems)
def sd_models() -> Response:
    engine = current_service().engine
    item = ModelItem(
        title=title(engine),
        model_name=engine.config.name,
        hash=engine.digest[:10],
        sha256=engine.digest,
        filename=engine.config.name,
    )
    return _listed([item])


@blueprint.get("/sd-vae")
@describe("The decoder from tokens to pixels", access="key", cost="little", owned=False, reply=VaeItems)
def sd_vae() -> Response:
    return _listed([VaeItem(model_name="VQGAN", filename="VQGAN")])


@blueprint.get("/samplers")
@describe("How tokens are drawn", access="key", cost="little", owned=False, reply=SamplerItems)
def samplers() -> Response:
    return _listed([SamplerItem(name=SAMPLER, aliases=[], options={})])


@blueprint.get("/schedulers")
@describe(
    "Noise schedules: an autoregressive model has none to choose",
    access="key",
    cost="little",
    owned=False,
    reply=SchedulerItems,
)
def schedulers() -> Response:
    return _listed([SchedulerItem(name="automatic", label="Automatic")])


@blueprint.get("/upscalers")
@describe("How a picture reaches the asked size", access="key", cost="little", owned=False, reply=UpscalerItems)
def upscalers() -> Response:
    return _listed([UpscalerItem(name=name) for name in UPSCALERS])
