"""What is asked of a request before its body is read: origin, key, rate, size; and the name it counts against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Flask, g, request
from werkzeug.datastructures import EnvironHeaders

from dalle_server.config import Settings
from dalle_server.errors import DalleServerError, InvalidRequest, PayloadTooLarge, RateLimited
from dalle_server.web.access import origins
from dalle_server.web.access.keys import Guesses, Keys, client_name, presented_keys
from dalle_server.web.access.origins import Origins
from dalle_server.web.access.rates import SlidingWindow
from dalle_server.web.routing import NO_ROUTE, Route, current_route

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

EXTENSION = "dalle_server.guard"
REFUSAL = "dalle_server.refusal"  # in environ: what the guard said of the headers, before the body was read


def client_id() -> str:
    """Fairness and ownership key of the current request: a digest of its API key, or its address."""
    client: str | None = g.get("client_id")
    return client if client is not None else f"addr:{request.remote_addr or 'unknown'}"


class Guard:
    """Decides what can be decided from a request's headers. Any thread. Raises ConfigError for senseless settings."""

    def __init__(self, settings: Settings):
        self.origins = Origins(settings)
        self._settings = settings
        self._keys = Keys.parse(settings.api_keys)
        self._guesses = Guesses(self._keys)
        self._rate = SlidingWindow(settings.rate_limit) if settings.rate_limit else None

    def check(self, environ: WSGIEnvironment, route: Route) -> tuple[str, bytes] | None:
        """Name and bytes of the request's key, where one is asked for. Raises what the request is refused with."""
        if route is NO_ROUTE:
            return None
        method, origin, site = (environ.get(name) for name in ("REQUEST_METHOD", "HTTP_ORIGIN", "HTTP_SEC_FETCH_SITE"))
        self.origins.check(route, method or "", environ.get("HTTP_HOST", ""), origin, site)
        key = None
        if self._keys and route.access == "key" and method != "OPTIONS":  # a preflight carries no key
            key = self._guesses.find(presented_keys(EnvironHeaders(environ)), environ.get("REMOTE_ADDR", "unknown"))
        self._check_body(environ, route)
        return key

    def _check_body(self, environ: WSGIEnvironment, route: Route) -> None:
        encoding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
        if encoding not in ("", "identity"):
            error = InvalidRequest(f"a body with Content-Encoding {encoding[:40]!r} is not read; send it as it is")
            error.status, error.code = 415, "unsupported_media_type"
            raise error
        length, limit = environ.get("CONTENT_LENGTH", ""), self.body_limit(route)
        if length.isdecimal() and int(length) > limit:
            raise PayloadTooLarge(f"the body has {length} bytes; {environ.get('PATH_INFO', '')} takes {limit} at most")

    def body_limit(self, route: Route) -> int:
        """Bytes that a request of this route may bring. Pictures also come as base64 within JSON, beside much text."""
        settings = self._settings
        if route.takes == "pictures":
            return max(settings.max_upload_bytes, settings.max_json_bytes)
        return settings.max_json_bytes

    def take_rate(self, client: str, route: Route) -> None:
        """Counts a request that makes pictures. Raises RateLimited."""
        if self._rate is None or route.cost != "pictures":
            return
        wait_s = self._rate.take(client)
        if wait_s:
            raise RateLimited(
                f"more than {self._settings.rate_limit} generation requests a minute; wait {wait_s:.0f} s",
                retry_after_s=wait_s,
            )


def install(app: Flask, settings: Settings) -> Guard:
    """Guard every view. Where the HTTP server has asked the guard already, its word holds."""
    guard = Guard(settings)
    app.extensions[EXTENSION] = guard

    @app.before_request
    def check() -> None:
        refusal: DalleServerError | None = request.environ.get(REFUSAL)
        if refusal is not None:
            raise refusal
        route = current_route()
        key = guard.check(request.environ, route)
        if key is not None:
            g.key_name, g.client_id = key[0], client_name(key[1])
        if request.method != "OPTIONS":
            guard.take_rate(client_id(), route)

    origins.install(app, guard.origins)
    return guard
