"""The OpenAPI 3.1 document, generated from the routes and their pydantic models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from dalle_server import __version__
from dalle_server.web.errors import error_model
from dalle_server.web.routing import Route, routes

Schema = dict[str, Any]
_EVENTS = "text/event-stream"
_PICTURES = ("png", "jpeg", "webp")
Refs = dict[Any, Schema]  # (model, mode) → {"$ref": …}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


class _Generator(GenerateJsonSchema):
    """pydantic leaves Python's names to the bounds of what a validator of ours reads first, and nobody knows those."""

    def generate_inner(self, schema: Any) -> Schema:
        return {_BOUNDS.get(name, name): value for name, value in super().generate_inner(schema).items()}


def document(app: Flask) -> Schema:
    """The whole document, as one JSON object."""
    listed = list(_listed(app))
    keys: set[tuple[type[BaseModel], JsonSchemaMode]] = set()
    for path, _, route in listed:
        keys |= {(model, "validation") for model in (route.body, route.form) if model}
        keys |= {(model, "serialization") for model in (route.reply, error_model(path), *route.also.values()) if model}
    ordered = sorted(keys, key=lambda key: (key[0].__name__, key[0].__module__, key[1]))
    refs, definitions = models_json_schema(
        ordered, ref_template="#/components/schemas/{model}", schema_generator=_Generator
    )
    paths: dict[str, Schema] = {}
    for path, method, route in listed:
        paths.setdefault(path, {})[method] = _operation(path, method, route, refs)
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


def _listed(app: Flask) -> Iterator[tuple[str, str, Route]]:
    """(path with {names}, lower-case method, route), in the order of the paths."""
    for rule, route in routes(app):
        if route.listed:
            path = re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule)
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield path, method.lower(), route


def _operation(path: str, method: str, route: Route, refs: Refs) -> Schema:
    operation: Schema = {
        "summary": route.summary,
        "operationId": "_".join([method, *re.findall(r"\w+", path)]),
        "tags": [_tag(path)],
        "responses": _responses(path, route, refs),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ] + (_query_parameters(route.query) if route.query else [])
    if parameters:
        operation["parameters"] = parameters
    bodies = {"application/json": route.body, "multipart/form-data": route.form}
    if content := {kind: {"schema": refs[model, "validation"]} for kind, model in bodies.items() if model}:
        operation["requestBody"] = {"required": True, "content": content}
    if route.access == "anyone":
        operation["security"] = [{}]
    return operation


def _responses(path: str, route: Route, refs: Refs) -> Schema:
    if route.reply is not None:
        one = refs[route.reply, "serialization"]
        schema = {"type": "array", "items": one} if route.many else one
    elif route.reply_type == "application/json":
        schema = {"type": "object"}
    else:
        schema = {"type": "string"}
    content: Schema = {route.reply_type: {"schema": schema}}
    if route.streams or route.reply_type == _EVENTS:
        content[_EVENTS] = {}  # OpenAPI 3.1 has no words for a stream of events
    if route.bare:
        content |= {f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in _PICTURES}
    error = {"application/json": {"schema": refs[error_model(path), "serialization"]}}
    others = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": refs[model, "serialization"]}},
        }
        for status, model in route.also.items()
    }
    return {
        str(route.status): {"description": HTTPStatus(route.status).phrase, "content": content},
        **others,
        "4XX": {"description": "The request was refused; the message names the field", "content": error},
        "5XX": {"description": "The server could not answer; Retry-After says when to try again", "content": error},
    }


def _query_parameters(model: type[BaseModel]) -> list[Schema]:
    schema = model.model_json_schema(schema_generator=_Generator)
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
    return "Original" if path in ("/", "/dalle", "/generate") else "Operations"
