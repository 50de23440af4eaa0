"""What waitress refuses before the application sees it, answered like every other error: JSON, request id, log line."""

from __future__ import annotations

import logging
import re
import time

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.task import ErrorTask
from waitress.utilities import Error

from dalle_server.errors import DalleServerError, InvalidRequest, NotSupported, PayloadTooLarge
from dalle_server.web.errors import plain_answer
from dalle_server.web.logging import access, fields, id_for

_FIRST_LINE = re.compile(rb"\s*\S+ (/[^\s?#]*)")


class JsonErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """A body or headers over their limit, bytes that are not HTTP, or an application that crashed."""

    def execute(self) -> None:
        error = _translated(self.request.error, self.channel.adj)
        path, request_id = self._path(), id_for(self.request.headers.get("X_REQUEST_ID", ""))
        self.status = f"{error.status} {self.request.error.reason}"
        self.response_headers, body = plain_answer(error, path, request_id)
        self.set_close_on_finish()
        self.write(body)
        line = {"request": request_id, "route": path, "status": error.status, "client": self.channel.addr[0]}
        access.log(logging.INFO, fields(**line, total_s=time.time() - self.start_time))

    def _path(self) -> str:
        """Of headers over their limit waitress keeps only the bytes; the path names the API, and so the envelope."""
        first_line = _FIRST_LINE.match(self.request.header_plus)
        return first_line[1].decode("latin-1") if first_line else getattr(self.request, "path", "") or "?"


class JsonErrorChannel(HTTPChannel):  # type: ignore[misc]
    """A connection whose refusals are `JsonErrorTask`s."""

    error_task_class = JsonErrorTask


def _translated(refusal: Error, adj: Adjustments) -> DalleServerError:
    if refusal.code == 413:
        return PayloadTooLarge(f"the body must have less than {adj.max_request_body_size} bytes")
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
