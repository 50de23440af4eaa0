"""While the queue is full, generation requests are refused before Flask sees them: a burst is told twice as soon."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask

from dalle_server.errors import Overloaded
from dalle_server.web import policy
from dalle_server.web.errors import plain_answer
from dalle_server.web.logging import access, fields, id_for
from dalle_server.web.service import Service

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class EarlyRefusal:
    """WSGI middleware. Requests of web pages go on to the application, which knows what their origin may read."""

    def __init__(self, app: WSGIApplication, service: Service):
        self._app = app
        self._service = service

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refusal = self._service.refusal
        if refusal is None or "HTTP_ORIGIN" in environ:
            return self._app(environ, start_response)
        if not policy.needs_queue(environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")):
            return self._app(environ, start_response)
        return self._refuse(refusal, environ, start_response)

    def _refuse(self, refusal: Overloaded, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begun = time.monotonic()
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        request_id = id_for(environ.get("HTTP_X_REQUEST_ID", ""))
        headers, body = plain_answer(refusal, path, request_id)
        start_response("503 Service Unavailable", headers)
        self._service.metrics.requests.labels("refused").inc()
        self._service.metrics.http.labels(path, method, refusal.status).inc()
        line = {"request": request_id, "method": method, "route": path, "status": refusal.status}
        client = environ.get("REMOTE_ADDR")
        access.log(logging.INFO, fields(**line, client=client, total_s=time.monotonic() - begun))
        return [body]


def install(app: Flask, service: Service) -> None:
    app.wsgi_app = EarlyRefusal(app.wsgi_app, service)  # type: ignore[method-assign]
