"""One translator for each API family turns an error into that family's envelope. Nothing else in web/ builds one."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from pydantic import BaseModel
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from dalle_server.errors import DalleServerError, InvalidRequest, NotFound, PayloadTooLarge

logger = logging.getLogger(__name__)

# A repeat of these would cost as much and end the same way; the openai client repeats ≥ 500 unless told.
_DO_NOT_RETRY = {499, 500, 501, 504, 507}
_RETRY_AFTER_S = 5.0  # of a 503 that knows no better
_OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def install(app: Flask) -> None:
    app.register_error_handler(DalleServerError, to_response)
    app.register_error_handler(HTTPException, _from_werkzeug)
    app.register_error_handler(Exception, _unexpected)


def to_response(error: DalleServerError) -> Response:
    """The error as an answer to the current request, in the envelope of the API it called."""
    response = jsonify(envelope(error, request.path))
    response.status_code = error.status
    response.headers.update(headers_of(error, request.path))
    return response


def plain_answer(error: DalleServerError, path: str) -> tuple[str, bytes]:
    """Lines of headers and the body of an error that is told without Flask."""
    body = json.dumps(envelope(error, path)).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers_of(error, path)}
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()), body


def headers_of(error: DalleServerError, path: str) -> dict[str, str]:
    """What an error's answer says beside its body."""
    headers = {}
    retry_after_s = _RETRY_AFTER_S if error.retry_after_s is None and error.status == 503 else error.retry_after_s
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    if error.status in _DO_NOT_RETRY:
        headers["x-should-retry"] = "false"
    if error.status == 401:  # RFC 9110, section 11.6.1; the scheme that clients of this API use
        scheme = "Basic" if error_model(path) is Automatic1111Error else "Bearer"
        headers["WWW-Authenticate"] = f'{scheme} realm="dalle-server"'
    return headers


class OriginalError(BaseModel):
    """An error of the original API."""

    error: str
    code: str
    param: str | None


class Automatic1111Error(BaseModel):
    """An error of the AUTOMATIC1111 API."""

    error: str
    detail: str
    body: str = ""
    errors: str


class OpenAIErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """An error of every other route."""

    error: OpenAIErrorBody


def error_model(path: str) -> type[OriginalError | Automatic1111Error | OpenAIError]:
    """The envelope that clients of this path know."""
    path = path.rstrip("/") or "/"  # which no route minds
    if path in ("/", "/dalle", "/generate"):
        return OriginalError
    return Automatic1111Error if path.startswith("/sdapi/") else OpenAIError


def envelope(error: DalleServerError, path: str) -> dict[str, Any]:
    model = error_model(path)
    if model is OriginalError:
        return OriginalError(error=error.message, code=error.code, param=error.param).model_dump()
    if model is Automatic1111Error:
        return Automatic1111Error(error=error.code, detail=error.message, errors=error.message).model_dump()
    return {"error": openai_error(error)}


def openai_error(error: DalleServerError) -> dict[str, Any]:
    """The inner object of the OpenAI envelope; streams send it too."""
    fallback = "invalid_request_error" if error.status < 500 and error.status != 499 else "server_error"
    kind = _OPENAI_TYPES.get(error.status, fallback)
    return OpenAIErrorBody(message=error.message, type=kind, param=error.param, code=error.code).model_dump()


def _from_werkzeug(error: HTTPException) -> Response | WerkzeugResponse:
    """Flask's own answers (no such route, wrong method, body too large, redirects) in our terms."""
    status = error.code or 500
    original = error.get_response()
    request.routing_exception = None  # its traceback holds the request: a cycle, in which the body would stay
    if status < 400:
        return original
    response = to_response(_translated(error, status))
    if "Allow" in original.headers:
        response.headers["Allow"] = original.headers["Allow"]
    return response


def _translated(error: HTTPException, status: int) -> DalleServerError:
    if status == 404:
        return NotFound(f"there is nothing at {request.path}{_meant()}")
    if status == 413:
        return PayloadTooLarge("the request's body is too large")
    if status == 405:
        translated: DalleServerError = InvalidRequest(f"{request.method} is not a method of {request.path}")
        translated.code = "method_not_allowed"
    elif status < 500:
        translated = InvalidRequest(error.description or error.name)
    else:
        translated = DalleServerError(error.name)
    translated.status = status
    return translated


def _meant() -> str:
    """A base URL without its /v1, or with two, is what clients get wrong most often."""
    for path in (f"/v1{request.path}", request.path.removeprefix("/v1"), request.path.removeprefix("/sdapi/v1")):
        if path.startswith(("/v1/", "/sdapi/v1/")) and current_app.url_map.bind("").test(path, request.method):
            return f"; did you mean {path}? An OpenAI client's base URL ends in /v1, an AUTOMATIC1111 client's does not"
    return ""


def _unexpected(error: Exception) -> Response:
    logger.exception("unexpected error in %s %s", request.method, request.path)
    return to_response(DalleServerError("internal error; the server's log has the details under this request id"))
