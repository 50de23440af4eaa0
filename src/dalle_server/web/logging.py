"""Structured logs: one line for each request and each generation, `key=value`, written off the hot threads."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, g, request

from dalle_server.web.routing import current_route
from dalle_server.web.serving.terminal import Terminal, TerminalHandler

access = logging.getLogger("dalle_server.access")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_BARE = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f-\x9f]+")


def configure(level: str, terminal: Terminal) -> None:
    """Send every log to the terminal. Of libraries warnings only: at debug level they write what clients sent."""
    # Nothing of a record is used but its time and words: the rest costs more than the line does.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = TerminalHandler(terminal)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel("ERROR" if level == "error" else "WARNING")
    logging.getLogger("dalle_server").setLevel(level.upper())


class LineFormatter(logging.Formatter):
    """`2026-11-22T14:00:00.123Z info dalle_server.web: message`, always one line; a traceback is folded in."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        elif record.exc_text:
            text += "\n" + record.exc_text
        text = text.replace("\r", "\\r").replace("\n", "\\n")
        return f"{stamp} {record.levelname.lower()} {record.name}: {text}"


def fields(**values: Any) -> str:
    """`a=1 b="two words"`; None is left out; nothing a client sends can break the line or forge a field."""
    return " ".join(f"{name}={_shown(value)}" for name, value in values.items() if value is not None)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)


def request_id() -> str:
    """The current request's id."""
    if "request_id" not in g:
        g.request_id = id_for(request.headers.get("x-request-id", ""))
    found: str = g.request_id
    return found


def id_for(given: str) -> str:
    """The client's own x-request-id when that is sane, else a new one."""
    return given if _SANE_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"


def install(app: Flask) -> None:
    """Give every answer its x-request-id, and log it when its last byte is written."""

    @app.before_request
    def begin() -> None:
        g.started_at = time.monotonic()
        request_id()

    @app.after_request
    def end(response: Response) -> Response:
        response.headers["x-request-id"] = request_id()
        line: dict[str, Any] = {
            "request": request_id(),
            "method": request.method,
            "route": request.path,
            "status": response.status_code,
            "client": g.get("key_name") or request.remote_addr,
        }
        started_at = g.get("started_at", time.monotonic())
        level = logging.DEBUG if current_route().vital else logging.INFO

        def closed() -> None:
            access.log(level, fields(**line, total_s=time.monotonic() - started_at))

        response.direct_passthrough = False  # else nothing is closed behind a file, and its line never written
        response.call_on_close(closed)
        return response
