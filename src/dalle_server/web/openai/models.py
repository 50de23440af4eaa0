"""GET /v1/models: the models of this server, and the names that the first also answers to."""

from __future__ import annotations

from typing import Literal

from flask import Blueprint, Response, jsonify
from pydantic import BaseModel, Field

from dalle_server.web.openai.names import ALIASES, is_alias
from dalle_server.web.pool.model import Model, ModelState
from dalle_server.web.pool.using import find_model
from dalle_server.web.routing import for_keys
from dalle_server.web.service import current_service

blueprint = Blueprint("openai_models", __name__, url_prefix="/v1")


class ModelItem(BaseModel):
    """OpenAI's four fields, and ours."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0  # checkpoints do not say
    owned_by: str = "dalle-server"
    alias_of: str | None = Field(None, description="the model that this name means, where it is not its own")
    default: bool = Field(description="drawn by requests that name none")
    state: ModelState = Field(description="absent: its weights are fetched when it is first asked for")
    title: str
    licence: str = ""
    family: str = Field("", description="empty, like image_px and digest, while its files are not here")
    image_px: int = 0
    features: tuple[str, ...] = Field(
        (), description='beyond drawing: "tokenize" (reads pictures), "logprobs", "seamless", "pull" (strength)'
    )
    digest: str = Field("", description="of its weights")
    size_bytes: int = Field(0, description="of its files; 0: not known")
    memory_bytes: int = Field(0, description="that it takes when it is loaded, about; 0: not known")


class ModelItems(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelItem]


def item_of(model: Model, name: str) -> ModelItem:
    known, card = model.known, model.card
    is_first = model is current_service().pool.first
    return ModelItem(
        id=name,
        alias_of=None if name == model.name else model.name,
        default=is_first and name == model.name,
        state=model.state,
        title=card.title if card else model.name,
        licence=card.licence if card else "",
        family=known.config.family if known else card.family if card else "",
        image_px=known.config.picture.width_px if known else card.image_px if card else 0,
        features=known.info.features if known else card.features if card else (),
        digest=model.digest,
        size_bytes=card.size_bytes if card else 0,
        memory_bytes=model.memory_bytes,
    )


@blueprint.get("/models")
@for_keys("The models, and the names that the first also answers to", reply=ModelItems)
def models() -> Response:
    service = current_service()
    service.check_started()
    found = [item_of(model, model.name) for model in service.pool.models]
    found += [item_of(service.pool.first, alias) for alias in ALIASES]
    return jsonify(ModelItems(data=found).model_dump())


@blueprint.get("/models/<name>")
@for_keys("One model", reply=ModelItem)
def model(name: str) -> Response:
    current_service().check_started()
    found = find_model(name, is_alias)
    return jsonify(item_of(found, found.name if found.name.lower() == name.lower() else name).model_dump())
