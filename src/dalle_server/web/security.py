"""Who is asking: API keys, rates, body limits, origins; and the name that fairness and ownership count against."""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from flask import Flask, g, request
from flask_cors import CORS

from dalle_server.config import Settings
from dalle_server.errors import ConfigError, Forbidden, PayloadTooLarge, RateLimited, Unauthorized
from dalle_server.web.rates import SlidingWindow
from dalle_server.web.routing import Route, current_route, routes

MIN_KEY_CHARS = 8
BAD_KEYS_PER_MINUTE = 10


def client_id() -> str:
    """Fairness and ownership key of the current request: a digest of its API key, or its address."""
    client: str | None = g.get("client_id")
    return client if client is not None else f"addr:{request.remote_addr or 'unknown'}"


class Keys:
    """The keys that may use the API. Only digests are kept."""

    def __init__(self, keys: dict[str, str]):
        self._names = {_digest(key): name for name, key in keys.items()}

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Keys:
        """Entries `name:key`, bare keys, and `@FILE` with one entry a line (# begins a comment). Raises ConfigError."""
        keys: dict[str, str] = {}
        for entry in _expand(entries):
            name, colon, key = entry.rpartition(":")
            if len(key) < MIN_KEY_CHARS:
                where = f"the key of {name!r}" if colon else "a key"
                raise ConfigError(f"api_keys: {where} has fewer than {MIN_KEY_CHARS} characters", param="api_keys")
            name = name or f"key-{_digest(key).hex()[:8]}"
            if keys.setdefault(name, key) != key:
                raise ConfigError(f"api_keys: the name {name!r} has two keys", param="api_keys")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._names)

    def name_of(self, key: str) -> str | None:
        """The name of a right key. Takes the same time for every wrong one."""
        digest, found = _digest(key), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


class Guesses:
    """Looks keys up, until an address has sent BAD_KEYS_PER_MINUTE wrong ones."""

    def __init__(self, keys: Keys):
        self._keys = keys
        self._wrong = SlidingWindow(BAD_KEYS_PER_MINUTE)
        self._lock = threading.Lock()  # one guess at a time: many at once must not all find the last place free

    def name_of(self, key: str, address: str) -> str:
        """The name of a right key. Raises Unauthorized, or RateLimited without having looked."""
        with self._lock:
            wait_s = self._wrong.wait_s(address)
            if wait_s:
                raise RateLimited("too many wrong API keys from this address", retry_after_s=wait_s)
            if not key:
                raise Unauthorized("an API key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`")
            name = self._keys.name_of(key)
            if name is None:
                self._wrong.add(address)
                raise Unauthorized("the API key is not known to this server")
            return name


def install(app: Flask, settings: Settings) -> None:
    """Check key, rate and body size before every view."""
    keys = Keys.parse(settings.api_keys)
    guesses = Guesses(keys)
    rate = SlidingWindow(settings.rate_limit) if settings.rate_limit else None

    @app.before_request
    def guard() -> None:
        if request.method == "OPTIONS":  # a preflight carries no key
            return
        route = current_route()
        _refuse_other_pages(settings, route)
        if keys and route.access == "key":
            _authenticate(guesses)
        if rate is not None and route.cost == "pictures":
            wait_s = rate.take(client_id())
            if wait_s:
                raise RateLimited(
                    f"more than {settings.rate_limit} generation requests a minute; wait {wait_s:.0f} s",
                    retry_after_s=wait_s,
                )
        limit = body_limit(settings, route)
        if (request.content_length or 0) > limit:
            raise PayloadTooLarge(f"the body has {request.content_length} bytes; {request.path} takes {limit} at most")


def body_limit(settings: Settings, route: Route) -> int:
    """Bytes that a request of this route may bring. Pictures come as base64 within JSON too, beside much text."""
    return (
        max(settings.max_upload_bytes, settings.max_json_bytes)
        if route.takes == "pictures"
        else settings.max_json_bytes
    )


def install_cors(app: Flask, settings: Settings) -> None:
    """Let pages of other origins call what is nobody's own: any origin by default, never with credentials.

    Without keys, jobs are owned by all who reach the server, and a page that someone merely visits reaches it too:
    only origins that the operator names may see them.
    """
    any_origin = "*" in settings.cors_origins
    paths = {_as_pattern(rule.rule) for rule, route in routes(app) if not (route.owned and any_origin)}
    CORS(
        app,
        resources={path: {"origins": "*" if any_origin else list(settings.cors_origins)} for path in paths},
        supports_credentials=False,
        expose_headers=["x-request-id", "Retry-After", "Location"],
    )


def _as_pattern(rule: str) -> str:
    """/pictures/<name> → a regular expression of its paths."""
    return "".join("[^/]+" if part.startswith("<") else re.escape(part) for part in re.split(r"(<[^>]+>)", rule)) + "$"


def _refuse_other_pages(settings: Settings, route: Route) -> None:
    """CORS keeps a page from reading an answer; a browser still sends it simple POSTs, and says whence."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        elsewhere = site not in ("same-origin", "none")
    else:  # over plain http a browser names only the origin; a proxy may have changed our port, hardly our name
        elsewhere = origin is not None and _host_of(origin) != _host_of(f"//{request.host}")
    named = origin in settings.cors_origins
    if elsewhere and not named and request.method not in ("GET", "HEAD") and route.owned:
        raise Forbidden("pages of other origins may not do this; name them in cors_origins to let them")


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _authenticate(guesses: Guesses) -> None:
    key = presented_key()
    g.key_name = guesses.name_of(key, request.remote_addr or "unknown")
    g.client_id = f"key:{_digest(key).hex()[:16]}"


def presented_key() -> str:
    """From `Authorization: Bearer`, `x-api-key`, or the password of Basic (AUTOMATIC1111's clients); "" = none."""
    authorization = request.authorization
    if authorization is not None and authorization.type == "bearer":
        return authorization.token or ""
    if authorization is not None and authorization.type == "basic":
        return authorization.password or authorization.username or ""
    return request.headers.get("x-api-key", "")


def _expand(entries: Iterable[str]) -> Iterable[str]:
    for entry in entries:
        if not entry.startswith("@"):
            yield entry
            continue
        try:
            text = Path(entry[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_keys: cannot read {entry[1:]}: {error}", param="api_keys") from None
        yield from filter(None, (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
