"""Counts what is in flight: refuses before the threads run out, and tells a drain when nothing is left."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Flask, has_request_context, request

from dalle_server.config import Settings
from dalle_server.errors import Overloaded
from dalle_server.web.routing import routes
from dalle_server.words import replica_bounds

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SPARE_THREADS = 16  # for what ends at once: life signs, refusals, pages, pictures
ASSUMED_SLOTS = 32  # where num_slots is left to the engine, which is not loaded yet
SHARE = 0.75  # of the places, that one address may hold: who holds them all shuts everybody out
MAX_IN_FLIGHT = 480  # each holds a thread
EXTENSION = "dalle_server.admission"
ENTERING = 2
ENTER_S = 1.0  # the longest wait for one of those before
ENTERS = "dalle_server.enters"  # in environ: the request wants a place
_ASKED, _ENTERED = "dalle_server.asked", "dalle_server.entered"
_REFUSED = "dalle_server.refused"


def max_in_flight(settings: Settings) -> int:
    """Requests that may be open at the same time; the server has SPARE_THREADS more threads than that."""
    if settings.cluster is not None and settings.replicas is None:
        return MAX_IN_FLIGHT  # nobody knows yet how many replicas there are
    engines = replica_bounds(settings.replicas)[1] if settings.replicas else 1
    of_a_model = engines * (settings.num_slots or ASSUMED_SLOTS) + settings.max_waiting_images
    return min(of_a_model * max(1, len(settings.models)) + settings.max_event_streams, MAX_IN_FLIGHT)


class Admission:
    """WSGI middleware. A request is in flight until its last byte is handed to the server, streams included.

    Requests over `limit`, or over one address's share of it, are not queued behind slow ones: they go through marked,
    and are refused by the application in the words of the API they called. Life signs are neither counted nor refused.
    """

    def __init__(self, app: WSGIApplication, limit: int, vital: frozenset[str]):
        self._app = app
        self._limit = limit
        self._share = max(1, math.ceil(SHARE * limit))
        self._vital = vital  # paths
        self._in_flight = 0
        self._by_address: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._entrance = threading.BoundedSemaphore(ENTERING)
        self.num_entering = 0  # that may take a place in the engine's queue any moment

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def check(self, address: str, num_waiting: int = 0) -> None:
        """Raises Overloaded when one more would be refused, `num_waiting` being on their way here."""
        if self._in_flight + num_waiting >= self._limit:
            raise Overloaded("too many requests are open at the same time; try again shortly", retry_after_s=2)
        if self._by_address[address] >= self._share:
            raise Overloaded(
                "too many requests of one address are open at the same time; wait for them", retry_after_s=2
            )

    def wait_until_idle(self, timeout_s: float) -> bool:
        """True when nothing is in flight any more."""
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight == 0, timeout_s)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO", "") in self._vital:
            return self._app(environ, start_response)
        address = environ.get("REMOTE_ADDR", "")
        with self._changed:
            try:
                self.check(address)
            except Overloaded as error:
                environ[_REFUSED] = error.with_traceback(None)
            self._in_flight += 1
            self._by_address[address] += 1

        leave = partial(self._leave, address)
        entered = self._enter(environ)
        try:
            body = self._app(environ, start_response)
        except BaseException:
            leave()
            raise
        finally:
            entered()
        return _Body(body, leave)

    def _enter(self, environ: WSGIEnvironment) -> Callable[[], None]:
        """Few requests at a time read their bodies and ask for a place: a burst of threads would only take turns at the
        interpreter, and the thread that tells the others that there is no room would be one of hundreds.
        """
        if not environ.get(ENTERS):
            return lambda: None
        with self._changed:
            self.num_entering += 1
        is_held = self._entrance.acquire(timeout=ENTER_S)

        def asked() -> None:
            if environ.pop(ENTERS, None):
                with self._changed:
                    self.num_entering -= 1

        def entered() -> None:
            nonlocal is_held
            asked()
            if is_held:
                is_held = False
                self._entrance.release()

        environ[_ASKED], environ[_ENTERED] = asked, entered
        return entered

    def _leave(self, address: str) -> None:
        with self._changed:
            self._in_flight -= 1
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
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


def asked() -> None:
    """The current request asks for its place now, and is counted there."""
    if has_request_context():
        request.environ.get(_ASKED, lambda: None)()


def entered() -> None:
    """The current request has its place, or waits for something else: let the next one in."""
    if has_request_context():
        request.environ.get(_ENTERED, lambda: None)()


def install(app: Flask, limit: int) -> Admission:
    """After the routes, which say whether they are vital."""
    vital = frozenset(rule.rule for rule, route in routes(app) if route.vital)
    admission = Admission(app.wsgi_app, limit, vital)
    app.extensions[EXTENSION] = admission
    app.wsgi_app = admission  # type: ignore[method-assign]

    @app.before_request
    def refuse() -> None:
        refusal: Overloaded | None = request.environ.get(_REFUSED)
        if refusal is not None:
            raise refusal

    return admission
