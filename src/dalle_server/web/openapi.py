"""The OpenAPI 3.1 document, generated from the routes and their pydantic models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from dalle_server import __version__
from dalle_server.web import policy
from dalle_server.web.errors import error_model

View = TypeVar("View", bound=Callable[..., object])
Schema = dict[str, Any]
_EVENTS = "text/event-stream"
Refs = dict[Any, Schema]  # (model, mode) → {"$ref": …}


@dataclass(frozen=True, slots=True)
class Description:
    """What the document says of one view."""

    summary: str
    body: type[BaseModel] | None = None
    reply: type[BaseModel] | None = None
    status: int = 200
    body_type: str = "application/json"  # or multipart/form-data
    reply_type: str = "application/json"  # or image/png, text/plain, …
    streams: bool = False  # may answer text/event-stream instead
    query: type[BaseModel] | None = None
    also: Mapping[int, type[BaseModel]] = field(default_factory=dict)  # other statuses with a reply of their own


def describe(
    summary: str,
    *,
    body: type[BaseModel] | None = None,
    reply: type[BaseModel] | None = None,
    status: int = 200,
    body_type: str = "application/json",
    reply_type: str = "application/json",
    streams: bool = False,
    query: type[BaseModel] | None = None,
    also: Mapping[int, type[BaseModel]] | None = None,
) -> Callable[[View], View]:
    """Decorates a view (below @blueprint.route) with its line in the OpenAPI document. Undescribed views stay out."""

    def mark(view: View) -> View:
        description = Description(summary, body, reply, status, body_type, reply_type, streams, query, also or {})
        view.__openapi__ = description  # type: ignore[attr-defined]
        return view

    return mark


def document(app: Flask) -> Schema:
    """The whole document, as one JSON object."""
    routes = list(_described(app))
    keys: set[tuple[type[BaseModel], JsonSchemaMode]] = set()
    for path, _, description in routes:
        keys |= {(model, "validation") for model in (description.body,) if model}
        keys |= {
            (model, "serialization")
            for model in (description.reply, error_model(path), *description.also.values())
            if model
        }
    ordered = sorted(keys, key=lambda key: (key[0].__name__, key[0].__module__, key[1]))
    refs, definitions = models_json_schema(ordered, ref_template="#/components/schemas/{model}")
    paths: dict[str, Schema] = {}
    for path, method, description in routes:
        paths.setdefault(path, {})[method] = _operation(path, method, description, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "DALL·E Server",
            "version": __version__,
            "description": "Text in, pictures out: the original API, OpenAI's Images API, AUTOMATIC1111's, and jobs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _described(app: Flask) -> Iterator[tuple[str, str, Description]]:
    """(path with {names}, lower-case method, description), in the order of the paths."""
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        description = getattr(app.view_functions[rule.endpoint], "__openapi__", None)
        if description is not None:
            path = re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule)
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield path, method.lower(), description


def _operation(path: str, method: str, description: Description, refs: Refs) -> Schema:
    operation: Schema = {
        "summary": description.summary,
        "operationId": "_".join([method, *re.findall(r"\w+", path)]),
        "tags": [_tag(path)],
        "responses": _responses(path, description, refs),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ] + (_query_parameters(description.query) if description.query else [])
    if parameters:
        operation["parameters"] = parameters
    if description.body is not None:
        schema = refs[description.body, "validation"]
        operation["requestBody"] = {"required": True, "content": {description.body_type: {"schema": schema}}}
    if policy.is_public(path):
        operation["security"] = [{}]
    return operation


def _responses(path: str, description: Description, refs: Refs) -> Schema:
    if description.reply is not None:
        schema = refs[description.reply, "serialization"]
    elif description.reply_type == "application/json":
        schema = {"type": "object"}
    else:
        schema = {"type": "string"}
    content: Schema = {description.reply_type: {"schema": schema}}
    if description.streams or description.reply_type == _EVENTS:
        content[_EVENTS] = {}  # OpenAPI 3.1 has no words for a stream of events
    error = {"application/json": {"schema": refs[error_model(path), "serialization"]}}
    others = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": refs[model, "serialization"]}},
        }
        for status, model in description.also.items()
    }
    return {
        str(description.status): {"description": HTTPStatus(description.status).phrase, "content": content},
        **others,
        "4XX": {"description": "The request was refused; the message names the field", "content": error},
        "5XX": {"description": "The server could not answer; Retry-After says when to try again", "content": error},
    }


def _query_parameters(model: type[BaseModel]) -> list[Schema]:
    schema = model.model_json_schema()
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": value}
        for name, value in schema["properties"].items()
    ]


def _tag(path: str) -> str:
    if path.startswith("/sdapi"):
        return "AUTOMATIC1111"
    if path.startswith(("/v1/images", "/v1/models", "/pictures")):
        return "OpenAI Images"
    if path.startswith("/v1/jobs"):
        return "Jobs"
    return "Original" if path in ("/", "/dalle") else "Operations"
