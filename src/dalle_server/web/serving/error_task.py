"""What is refused before the application sees it, answered like every other error: in JSON, counted, logged."""

from __future__ import annotations

import logging
import re
import time
from http import HTTPStatus
from typing import Any

from waitress.adjustments import Adjustments
from waitress.task import ErrorTask
from waitress.utilities import Error, build_http_date

from dalle_server.errors import DalleServerError, InvalidRequest, NotSupported, PayloadTooLarge
from dalle_server.web.errors import error_model, plain_answer
from dalle_server.web.logging import access, fields, id_for

MOST_ANSWERS = 64  # kept
_answers: dict[tuple[Any, ...], tuple[str, bytes]] = {}
_FIRST_LINE = re.compile(rb"\s*(\S+) (/[^\s?#]*)")


class RefusalTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """The gate's refusal, bytes that are not HTTP, headers or a body over their limit, an application that crashed."""

    def execute(self) -> None:
        verdict = self.request.verdict
        error = verdict.refusal or _translated(self.request.error, self.channel.adj, verdict.body_limit)
        method, path = self._asked()
        request_id = id_for(self.request.headers.get("X_REQUEST_ID", ""))
        headers, body = _answer(error, verdict.path or path)  # which names the API
        head = (
            f"HTTP/{self.version} {error.status} {_phrase(error.status)}\r\nConnection: close\r\n"
            f"Date: {build_http_date(self.start_time)}\r\nServer: {self.channel.adj.ident}\r\n"
            f"X-Request-Id: {request_id}\r\n{headers}\r\n"
        )
        # In one piece: each costs a turn at the network.
        self.channel.write_soon(head.encode("latin-1") + (b"" if method == "HEAD" else body))
        self.wrote_header = self.close_on_finish = True
        gate = self.channel.server.gate
        gate.count(verdict.rule, method, error)
        client, total_s = verdict.client or self.channel.addr[0], time.time() - self.start_time
        line = {"request": request_id, "method": method, "route": path, "status": error.status, "client": client}
        gate.log_later(lambda: access.log(logging.INFO, fields(**line, total_s=total_s)))

    def _asked(self) -> tuple[str, str]:
        """Method and path as they came: headers over their limit are not read."""
        first_line = _FIRST_LINE.match(self.request.head)
        if first_line:
            return first_line[1].decode("latin-1"), first_line[2].decode("latin-1")
        return getattr(self.request, "command", "") or "other", getattr(self.request, "path", "") or "?"


def _answer(error: DalleServerError, path: str) -> tuple[str, bytes]:
    """Those who are refused together are told the same."""
    key = error.status, error.code, error.message, error.param, error.retry_after_s, error_model(path)
    if key not in _answers:
        if len(_answers) >= MOST_ANSWERS:
            _answers.clear()
        _answers[key] = plain_answer(error, path)
    return _answers[key]


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Refused"


def _translated(refusal: Error, adj: Adjustments, body_limit: int) -> DalleServerError:
    if refusal.code == 413:
        return PayloadTooLarge(f"the body has more than the {body_limit} bytes that this route takes")
    if refusal.code == 501:
        return NotSupported(refusal.body)
    if refusal.code >= 500:
        return DalleServerError("internal error; the server's log has the details")
    error = InvalidRequest(f"this is not valid HTTP: {refusal.body}")
    if refusal.code == 431:
        error = InvalidRequest(f"the headers must have less than {adj.max_request_header_size} bytes together")
        error.code = "headers_too_large"
    error.status = refusal.code
    return error
