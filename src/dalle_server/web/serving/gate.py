"""Decides about a request when its headers are complete, before a byte of its body is kept.

In the one thread that reads all connections: nothing here may wait, or cost more than a fraction of a millisecond.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from dalle_server.errors import DalleServerError, Overloaded
from dalle_server.web.access import security
from dalle_server.web.routing import Route, route_of
from dalle_server.web.service import EXTENSION, Service
from dalle_server.web.serving import admission, forwarded
from dalle_server.web.serving.workers import Workers

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


FULL_S = 0.01  # that the queue is taken to stay full: to ask costs a lock that the engine's threads want


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a request."""

    rule: str = "none"  # the route's, for the counters
    client: str = ""  # address
    path: str = ""  # as the application sees it, behind its prefix
    body_limit: int = 0  # bytes
    refusal: DalleServerError | None = None
    enters: bool = False  # it will ask for a place in the queue
    is_vital: bool = False

    @property
    def reads_body(self) -> bool:
        return self.refusal is None and self.body_limit > 0


class Gate:
    """Asks the application's own guards, so that a request that passes here passes there too."""

    def __init__(self, app: Flask):
        self.app = app
        self._routes = app.url_map.bind("")
        self.num_judged = 0
        self._unlogged: deque[Callable[[], None]] = deque()
        self._plain: dict[tuple[str, str], tuple[str, Route]] = {}
        self._full_at, self._retry_after_s = -math.inf, 0.0
        self._service: Service = app.extensions[EXTENSION]
        self._guard: security.Guard = app.extensions[security.EXTENSION]
        self._admission: admission.Admission = app.extensions[admission.EXTENSION]
        self._forwarded: forwarded.Forwarded = app.extensions[forwarded.EXTENSION]

    def is_proxy(self, address: str) -> bool:
        return self._forwarded.trusts(address)

    def judge(self, environ: WSGIEnvironment, *, has_body: bool, workers: Workers) -> Verdict:
        """`environ` has the method, path, address and headers, and may be changed. What waits for `workers` passed
        before and has not reached the application yet.
        """
        self.num_judged += 1
        self._forwarded.apply(environ)
        found = self._find(environ)
        path = environ["PATH_INFO"]
        if found is None:
            return Verdict(path=path)  # whatever it brings is left unread; the application says why
        (rule, route), address = found, environ["REMOTE_ADDR"]
        try:
            if not route.vital:
                self._admission.check(address, workers.num_waiting)
            if has_body:
                self._guard.check(environ, route)
                self._check_queue(route, workers)
        except DalleServerError as error:
            return Verdict(rule, address, path, refusal=error.with_traceback(None))
        enters = has_body and route.cost == "pictures"
        return Verdict(rule, address, path, self._guard.body_limit(route), enters=enters, is_vital=route.vital)

    def _find(self, environ: WSGIEnvironment) -> tuple[str, Route] | None:
        asked = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if asked in self._plain:
            return self._plain[asked]
        path = asked[1].encode("latin-1", "replace").decode("utf-8", "replace")
        try:
            rule, _ = self._routes.match(path, asked[0], return_rule=True)
        except (HTTPException, RequestRedirect):
            return None
        found = rule.rule, route_of(self.app, rule)
        if rule.rule == path:  # without variable parts: there are only so many
            self._plain[asked] = found
        return found

    def _check_queue(self, route: Route, workers: Workers) -> None:
        if route.cost != "pictures":
            return
        now = time.monotonic()
        if now - self._full_at > FULL_S:
            retry_after_s = self._service.full_for_s(workers.num_entering + self._admission.num_entering)
            if retry_after_s is None:
                return
            self._full_at, self._retry_after_s = now, math.ceil(retry_after_s)
        raise Overloaded("the queue is full; try again later", retry_after_s=self._retry_after_s)

    def log_later(self, write: Callable[[], None]) -> None:
        """Those who are told at once come before what is written about them. Any thread."""
        self._unlogged.append(write)

    def log(self) -> None:
        """At the end of every turn."""
        while self._unlogged:
            self._unlogged.popleft()()

    def count(self, rule: str, method: str, error: DalleServerError) -> None:
        """Put a refusal that the application never sees into its counters."""
        metrics = self._service.metrics
        metrics.answered(rule, method, error.status)
        if isinstance(error, Overloaded):
            metrics.requests.labels("refused").inc()
