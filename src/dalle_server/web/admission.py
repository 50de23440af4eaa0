"""Counts what is in flight: refuses before the threads run out, and tells a drain when nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from flask import Flask, request

from dalle_server.config import Settings
from dalle_server.errors import Overloaded
from dalle_server.web.routing import routes

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SPARE_THREADS = 16  # for what ends at once: life signs, refusals, pages, pictures
ASSUMED_SLOTS = 32  # where num_slots is left to the engine, which is not loaded yet
EXTENSION = "dalle_server.admission"
_REFUSED = "dalle_server.refused"


def max_in_flight(settings: Settings) -> int:
    """Requests that may be open at the same time; the server has SPARE_THREADS more threads than that."""
    return (settings.num_slots or ASSUMED_SLOTS) + settings.max_waiting_images + settings.max_event_streams


class Admission:
    """WSGI middleware. A request is in flight until its last byte is handed to the server, streams included.

    Requests over `limit` are not queued behind slow ones: they go through marked, and are refused by the
    application in the words of the API they called. Life signs are neither counted against nor refused.
    """

    def __init__(self, app: WSGIApplication, limit: int, vital: frozenset[str]):
        self._app = app
        self._limit = limit
        self._vital = vital  # paths
        self._in_flight = 0
        self._changed = threading.Condition()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def wait_until_idle(self, timeout_s: float) -> bool:
        """True when nothing is in flight any more."""
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight == 0, timeout_s)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO", "") in self._vital:
            return self._app(environ, start_response)
        with self._changed:
            self._in_flight += 1
            environ[_REFUSED] = self._in_flight > self._limit
        try:
            body = self._app(environ, start_response)
        except BaseException:
            self._leave()
            raise
        return _Body(body, self._leave)

    def _leave(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()


class _Body:
    """A response's body that says once when it is closed."""

    def __init__(self, body: Iterable[bytes], leave: Any):
        self._body = body
        self._leave = leave

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            leave, self._leave = self._leave, lambda: None
            leave()


def install(app: Flask, limit: int) -> Admission:
    """After the routes, which say whether they are vital."""
    vital = frozenset(rule.rule for rule, route in routes(app) if route.vital)
    admission = Admission(app.wsgi_app, limit, vital)
    app.extensions[EXTENSION] = admission
    app.wsgi_app = admission  # type: ignore[method-assign]

    @app.before_request
    def refuse() -> None:
        if request.environ.get(_REFUSED):
            raise Overloaded("too many requests are open at the same time; try again shortly", retry_after_s=2)

    return admission
