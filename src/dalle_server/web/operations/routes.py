"""What an operator asks: is it alive, is it ready, what does it do, what is it, and how is it spoken to."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from flask import Blueprint, Response, current_app, jsonify, render_template, request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from dalle_server import __version__
from dalle_server.web.operations.openapi import document
from dalle_server.web.pool.model import Known, Model, ModelState, ReplicaStatus, Replicated
from dalle_server.web.routing import for_anyone, for_its_owner
from dalle_server.web.service import Service, State, current_service

blueprint = Blueprint("operations", __name__, template_folder="templates")
_documents_lock = threading.RLock()  # many first requests at once must not all do the work

T = TypeVar("T")


@blueprint.after_app_request
def count(response: Response) -> Response:
    rule = request.url_rule.rule if request.url_rule else "none"  # not the path: anyone can make up new ones
    current_service().metrics.answered(rule, request.method, response.status_code)
    return response


class ModelHealth(BaseModel):
    name: str
    state: ModelState


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    model: State  # of the server: of the first model, where there is one
    models: list[ModelHealth]
    version: str = __version__


class Readiness(BaseModel):
    ready: bool
    state: State
    reason: str | None = None


class ModelInfo(BaseModel):
    """As it is, or was when it was last loaded."""

    name: str
    state: ModelState
    weights_digest: str
    image_px: int
    image_tokens: int
    codebook_size: int
    sampling: dict[str, float | int | None]
    determinism: str


class RunnerDescription(BaseModel):
    runner: str
    device: str
    device_name: str
    dtype: str
    reason: str
    versions: dict[str, str]
    num_threads: int | None
    build: str | None  # of the compiled code, by instruction set; null where it does not run
    features: tuple[str, ...]  # beyond drawing: "tokenize" (reads pictures), "logprobs", "seamless", "pull" (strength)


class ModelOnRunner(BaseModel):
    model: ModelInfo
    runner: RunnerDescription
    num_slots: int
    replicas: list[ReplicaStatus]  # on a cluster


class Limits(BaseModel):
    max_images: int
    num_slots: int
    max_waiting_images: int
    request_timeout_s: float
    rate_limit_per_minute: int
    max_json_bytes: int
    max_upload_bytes: int
    memory_budget: int | None  # bytes; null: no bound
    idle_unload_s: float


class Info(BaseModel):
    version: str
    python: str
    state: State
    model: ModelInfo  # the first
    runner: RunnerDescription  # its
    models: list[ModelOnRunner]  # all that have been loaded since the start
    limits: Limits


@blueprint.get("/health")
@for_anyone("Is the process alive? Says whether the model is still loading", vital=True, reply=Health)
def health() -> dict[str, Any]:
    service = current_service()
    models = [ModelHealth(name=model.name, state=model.state) for model in service.pool.models if model.name]
    return Health(model=service.state, models=models).model_dump()


@blueprint.get("/ready")
@for_anyone(
    "May requests be sent here? 503 while loading, restarting or draining",
    vital=True,
    reply=Readiness,
    also={503: Readiness},
)
def ready() -> tuple[Response, int]:
    service = current_service()
    state = service.state
    reply = Readiness(ready=state == "ready", state=state, reason=_reason(service, state))
    response = jsonify(reply.model_dump())
    if not reply.ready:
        response.headers["Retry-After"] = "2"
    return response, 200 if reply.ready else 503


def _reason(service: Service, state: State) -> str | None:
    if service.failure is not None:
        return service.failure.message
    if state == "ready":
        return "; ".join(f"{part} are off: {reason}" for part, reason in service.notes.items()) or None
    return f"the model is {state}" if state == "loading" else f"the server is {state}"


@blueprint.get("/metrics")
@for_its_owner("Counters and histograms for Prometheus", vital=True, reply_type="text/plain")
def metrics() -> Response:
    return Response(current_service().metrics.text(), content_type=CONTENT_TYPE_LATEST)


@blueprint.get("/v1/info")
@for_its_owner("The model, what it runs on and why, versions, limits", reply=Info)
def info() -> dict[str, Any]:
    service = current_service()
    service.check_started()
    settings = service.settings
    known = [_described(model, model.known) for model in service.pool.models if model.known]
    first = known[0]
    here = {"num_slots": first.num_slots, "memory_budget": service.pool.budget_bytes}
    return Info(
        version=__version__,
        python=platform.python_version(),
        state=service.state,
        model=first.model,
        runner=first.runner,
        models=known,
        limits=Limits.model_validate({**dict(settings), **here, "rate_limit_per_minute": settings.rate_limit}),
    ).model_dump()


def _described(model: Model, known: Known) -> ModelOnRunner:
    picture, sampling, engine = known.config.picture, known.config.sampling, model.engine_now
    return ModelOnRunner(
        model=ModelInfo(
            name=model.name,
            state=model.state,
            weights_digest=known.digest,
            image_px=picture.width_px,
            image_tokens=picture.num_tokens,
            codebook_size=picture.codebook_size,
            sampling={name: getattr(sampling, name) for name in sampling.__slots__},
            determinism=known.determinism,
        ),
        runner=RunnerDescription(**{name: getattr(known.info, name) for name in RunnerDescription.model_fields}),
        num_slots=engine.stats().num_slots if engine else known.num_slots,
        replicas=list(engine.replicas) if isinstance(engine, Replicated) else [],
    )


@blueprint.get("/openapi.json")
@for_anyone("This document", listed=False)
def openapi() -> Response:
    return jsonify(_document())


@blueprint.get("/docs")
@for_anyone("This document, for people", listed=False)
def docs() -> str:
    """A page that needs nothing from elsewhere: an offline machine shows it too."""
    return _once("docs", lambda: render_template("docs.html", api=_document()))


def _document() -> dict[str, Any]:
    return _once("openapi", lambda: document(current_app))


def _once(name: str, make: Callable[[], T]) -> T:
    """Made at the first request and kept: the routes do not change after it."""
    kept: dict[str, T] = current_app.extensions.setdefault("dalle_server.documents", {})
    with _documents_lock:
        if name not in kept:
            kept[name] = make()
        return kept[name]
