"""The OpenAI Images API, as the official `openai` client speaks it."""

from __future__ import annotations

import time

from flask import Blueprint, Response, jsonify
from flask.typing import ResponseReturnValue

from dalle_server.errors import InvalidRequest, NotFound, NotSupported
from dalle_server.generation import Generation, GenerationRequest
from dalle_server.pictures.codec import base64_text, encode_result
from dalle_server.web import picture_urls as pictures
from dalle_server.web.openai import stream as openai_stream
from dalle_server.web.openai.schemas import ImageData, ImageGenerationBody, ImagesReply, Model, ModelList, Usage
from dalle_server.web.routing import describe
from dalle_server.web.schemas import read_json
from dalle_server.web.security import client_id
from dalle_server.web.service import Engine, current_service
from dalle_server.web.waiting import collect

blueprint = Blueprint("openai", __name__, url_prefix="/v1")

# Names that clients have in fixed menus; each means the loaded model.
ALIASES = ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1.5", "gpt-image-2")


def resolve_model(name: str | None, engine: Engine) -> str:
    """The loaded model's name for its own name, an alias or nothing. Raises NotFound (model_not_found)."""
    if name is None or name.lower() == engine.config.name.lower() or name in ALIASES:
        return engine.config.name
    error = NotFound(
        f"model {name!r} is not loaded; this server runs {engine.config.name!r} (also as {', '.join(ALIASES)})",
        param="model",
    )
    error.code = "model_not_found"
    raise error


@blueprint.post("/images/generations")
@describe(
    "Make pictures from a prompt",
    access="key",
    cost="pictures",
    owned=False,
    body=ImageGenerationBody,
    reply=ImagesReply,
    streams=True,
)
def generations() -> ResponseReturnValue:
    body = read_json(ImageGenerationBody)
    service = current_service()
    engine = service.engine
    resolve_model(body.model, engine)
    num_images = body.n or 1
    if num_images > service.settings.max_images:
        raise InvalidRequest(f"n must be at most {service.settings.max_images}, not {num_images}", param="n")
    request = GenerationRequest.of(
        body.prompt,
        num_images,
        body.seed,
        sampling=body.sampling,
        preview_every=openai_stream.preview_every(body, engine.config.transformer.image_length),
        timeout_s=service.settings.request_timeout_s,
        client=client_id(),
    )
    generation = service.submit(request)
    if body.stream:
        return openai_stream.respond(generation, body, engine)
    return jsonify(_reply(generation, body, engine).model_dump(exclude_none=True))


def _reply(generation: Generation, body: ImageGenerationBody, engine: Engine) -> ImagesReply:
    images = collect(generation)
    width, height = size_px = body.size_px(engine.config.image_px)
    as_url, as_base64 = _result_forms(body)
    data = []
    for image in images:
        file = encode_result(image, generation, engine, body.format, size_px=size_px, quality=body.output_compression)
        data.append(
            ImageData(
                b64_json=base64_text(file) if as_base64 else None,
                url=pictures.keep(file, body.format) if as_url else None,
                seed=image.key.seed,
                image_index=image.key.index,
            )
        )
    return ImagesReply(
        created=int(time.time()),
        data=data,
        output_format=body.format.value,
        size=f"{width}x{height}",
        usage=Usage.of(generation.text_token_count, sum(len(image.tokens) for image in images)),
    )


def _result_forms(body: ImageGenerationBody) -> tuple[bool, bool]:
    """(as url, as base64). gpt-image models never had URLs; the older ones' clients may read either."""
    if body.response_format is not None:
        return body.response_format == "url", body.response_format == "b64_json"
    return not (body.model or "").startswith("gpt-image"), True


@blueprint.get("/models")
@describe(
    "The loaded model, and the names it also answers to", access="key", cost="little", owned=False, reply=ModelList
)
def models() -> Response:
    names = (current_service().engine.config.name, *ALIASES)
    return jsonify(ModelList(data=[Model(id=name) for name in names]).model_dump())


@blueprint.get("/models/<name>")
@describe("One model", access="key", cost="little", owned=False, reply=Model)
def model(name: str) -> Response:
    resolve_model(name, current_service().engine)
    return jsonify(Model(id=name).model_dump())


@blueprint.post("/images/edits")
@describe(
    "Repaint a part of a picture (not possible yet)",
    access="key",
    cost="pictures",
    owned=False,
    takes="pictures",
    status=501,
)
def edits() -> Response:
    raise NotSupported("image edits are not supported yet; use /v1/images/generations")


@blueprint.post("/images/variations")
@describe(
    "Variations of a picture (not possible yet)",
    access="key",
    cost="pictures",
    owned=False,
    takes="pictures",
    status=501,
)
def variations() -> Response:
    raise NotSupported("image variations are not supported yet; use /v1/images/generations with other seeds")
