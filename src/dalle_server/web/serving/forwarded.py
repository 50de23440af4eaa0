"""Behind a reverse proxy: who is asking, and under which address clients know this server."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flask import Flask, request

from dalle_server.config import Settings
from dalle_server.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?")
EXTENSION = "dalle_server.forwarded"
_ROOT = "dalle_server.root"


class Forwarded:
    """WSGI middleware. X-Forwarded-* headers are believed when a trusted proxy sends them, and removed otherwise.

    Raises ConfigError for a trusted_proxy or public_url that could not mean anything.
    """

    def __init__(self, app: Flask, settings: Settings):
        self._app: WSGIApplication = app.wsgi_app
        self._routes = app.url_map.bind("")
        self._trusted = [_network(text) for text in settings.trusted_proxy]
        self._root = None if settings.public_url is None else _root(settings.public_url)
        self._prefix = "" if self._root is None else urlsplit(self._root).path.rstrip("/")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.apply(environ)
        return self._app(environ, start_response)

    def trusts(self, address: str) -> bool:
        """Whether connections from here are a proxy's, and so many clients' at once."""
        if not self._trusted:
            return False
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self._trusted)

    def apply(self, environ: WSGIEnvironment) -> None:
        """Make `environ` say what the client asked the proxy for."""
        said = {
            name: environ.pop(f"HTTP_X_FORWARDED_{name}", "") for name in ("FOR", "PROTO", "HOST", "PREFIX", "PORT")
        }
        prefix = self._prefix
        if self._trusted and self.trusts(environ.get("REMOTE_ADDR", "")):
            environ["REMOTE_ADDR"] = self._client(environ["REMOTE_ADDR"], said["FOR"])
            if (scheme := _last(said["PROTO"]).lower()) in ("http", "https"):
                environ["wsgi.url_scheme"] = scheme
            if _HOST.fullmatch(host := _last(said["HOST"])):
                environ["HTTP_HOST"] = host
            if _PREFIX.fullmatch(given := _last(said["PREFIX"]).rstrip("/")):
                prefix = given
        if prefix:
            environ["SCRIPT_NAME"] = prefix
            environ["PATH_INFO"] = self._without(prefix, environ)
        if self._root is not None:
            environ[_ROOT] = self._root

    def _without(self, prefix: str, environ: WSGIEnvironment) -> str:
        """The path behind the prefix, which a proxy may have taken off already: then a route can begin with the same
        word, as /dalle does. So nothing is taken off where only the path as it stands is a route.
        """
        path: str = environ.get("PATH_INFO", "")
        if path != prefix and not path.startswith(f"{prefix}/"):
            return path
        method = environ["REQUEST_METHOD"]
        if method == "OPTIONS":  # a browser asks for another method's sake
            method = environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD", method)
        behind = path[len(prefix) :] or "/"
        is_route = self._routes.test
        return path if is_route(path, method) and not is_route(behind, method) else behind

    def _client(self, peer: str, forwarded_for: str) -> str:
        """The nearest address that is no proxy of ours; what stands further left, anyone may have written."""
        client = peer
        for part in reversed(forwarded_for.split(",")):
            address = _address(re.sub(r"^\[(.*)\](:\d+)?$|^([^:]+):\d+$", r"\1\3", part.strip().strip('"')))
            if address is None:
                break
            client = str(address)
            if not self.trusts(client):
                break
        return client


def install(app: Flask, settings: Settings) -> Forwarded:
    forwarded = Forwarded(app, settings)
    app.extensions[EXTENSION] = forwarded
    app.wsgi_app = forwarded  # type: ignore[method-assign]
    return forwarded


def root_url() -> str:
    """The server's own address as the current request's client knows it, with a slash at its end."""
    root: str = request.environ.get(_ROOT) or request.url_root
    return root


def _last(header: str) -> str:
    return header.rpartition(",")[2].strip()


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f"trusted_proxy: {text!r} is neither an address nor a network; write such as 127.0.0.1 or 10.0.0.0/8, "
            "several with commas between",
            param="trusted_proxy",
        ) from None


def _root(url: str) -> str:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and _HOST.fullmatch(parts.netloc) and parts.port != 0
    except ValueError:
        fits, parts = None, urlsplit("")
    path = parts.path.rstrip("/")
    if not fits or parts.query or parts.fragment or not (path == "" or _PREFIX.fullmatch(path)):
        raise ConfigError(
            f"public_url: expected the address under which clients reach this server, such as "
            f"https://pictures.example.org or https://example.org/dalle, not {url!r}",
            param="public_url",
        )
    return f"{parts.scheme}://{parts.netloc}{path}/"
