"""One translator for each API family turns an error into that family's envelope. Nothing else in web/ builds one."""

from __future__ import annotations

import logging
import math
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from dalle_server.errors import DalleServerError, InvalidRequest, NotFound, PayloadTooLarge

logger = logging.getLogger(__name__)

# A repeat of these would cost as much and end the same way; the openai client repeats ≥ 500 unless told.
_DO_NOT_RETRY = {499, 500, 501, 504, 507}
_OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def install(app: Flask) -> None:
    app.register_error_handler(DalleServerError, to_response)
    app.register_error_handler(HTTPException, lambda error: to_response(from_http_exception(error)))
    app.register_error_handler(Exception, _unexpected)


def to_response(error: DalleServerError) -> Response:
    """The error as an answer to the current request, in the envelope of the API it called."""
    response = jsonify(envelope(error, request.path))
    response.status_code = error.status
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status in _DO_NOT_RETRY:
        response.headers["x-should-retry"] = "false"
    return response


def envelope(error: DalleServerError, path: str) -> dict[str, Any]:
    if path in ("/", "/dalle"):
        return {"error": error.message, "code": error.code, "param": error.param}
    if path.startswith("/sdapi/"):
        return {"error": error.code, "detail": error.message, "body": "", "errors": error.message}
    return {"error": openai_error(error)}


def openai_error(error: DalleServerError) -> dict[str, Any]:
    """The inner object of the OpenAI envelope; streams send it too."""
    fallback = "invalid_request_error" if error.status < 500 and error.status != 499 else "server_error"
    kind = _OPENAI_TYPES.get(error.status, fallback)
    return {"message": error.message, "type": kind, "param": error.param, "code": error.code}


def from_http_exception(error: HTTPException) -> DalleServerError:
    """Flask's own refusals (no such route, wrong method, body too large) in our terms."""
    if error.code == 404:
        return NotFound(f"there is nothing at {request.path}")
    if error.code == 413:
        return PayloadTooLarge("the request's body is too large")
    translated = (
        InvalidRequest(error.description or error.name) if (error.code or 500) < 500 else DalleServerError(error.name)
    )
    translated.status = error.code or 500
    return translated


def _unexpected(error: Exception) -> Response:
    logger.exception("unexpected error in %s %s", request.method, request.path)
    return to_response(DalleServerError("internal error; the server's log has the details under this request id"))
