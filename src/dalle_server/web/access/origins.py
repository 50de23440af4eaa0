"""Which web pages may call what. A browser sends requests of every page its user opens, this server's or not.

Three defences, one for each thing such a page can do:
- read an answer: CORS headers go out only where the route is nobody's own, or the page's origin is named;
- act blindly (a form's POST needs no leave): refused by Origin, where the route is owned or origins are named;
- pretend to be this server, by a DNS name of its own that suddenly points here: refused by Host, on owned routes,
  while no key guards them.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from flask import Flask, Response, request

from dalle_server.config import Settings
from dalle_server.errors import ConfigError, Forbidden
from dalle_server.web.routing import Route, current_route

_EXPOSED = "x-request-id, Retry-After, Location"
# Nobody can register these, or names without a dot: only this network's own administrator gives them out.
_PRIVATE_ZONES = ("localhost", "local", "internal", "lan", "home.arpa", "svc", "test")


class Origins:
    """The origins and host names that the operator named. Raises ConfigError for one that no browser would send."""

    def __init__(self, settings: Settings):
        self.any = "*" in settings.cors_origins
        self.named = frozenset(_checked(origin) for origin in settings.cors_origins if origin != "*")
        self._own = _origin_of(settings.public_url or "")
        self._guarded = bool(settings.api_keys)
        names = {socket.gethostname().lower(), settings.host.lower(), host_of(settings.public_url or "")}
        self._hosts = names | {host_of(origin) for origin in self.named}

    def may_read(self, origin: str, route: Route) -> bool:
        return origin in self.named or (self.any and not route.owned)

    def check(self, route: Route, method: str, host: str, origin: str | None, site: str | None) -> None:
        """Raises Forbidden for a request that another page, or another name for this server, may not send.

        `site` is the Sec-Fetch-Site header: browsers send it over https and on one machine. Over plain http there is
        the origin alone; a proxy may have changed our port, hardly our name.
        """
        if route.access == "key" and route.owned and not self._guarded and not self._is_ours(host_of(f"//{host}")):
            raise Forbidden(
                f"this server asks for no key, and does not know itself as {host[:100]!r}: name it in public_url, "
                "or set api_keys"
            )
        if method in ("GET", "HEAD", "OPTIONS") or origin in self.named:
            return
        if origin is not None and origin == self._own:  # whatever Host a proxy sends instead
            return
        if site is not None:
            elsewhere = site not in ("same-origin", "none")
        else:
            elsewhere = origin is not None and host_of(origin) != host_of(f"//{host}")
        if elsewhere and (route.owned or not self.any):
            raise Forbidden("pages of other origins may not do this; name them in cors_origins to let them")

    def _is_ours(self, name: str | None) -> bool:
        if name is None:
            return False
        name = name.rstrip(".")
        if "." not in name or name in self._hosts or _is_address(name):
            return True
        return name.endswith(tuple(f".{zone}" for zone in _PRIVATE_ZONES))


def install(app: Flask, origins: Origins) -> None:
    """Tell browsers which pages may read an answer (WHATWG Fetch, section 3.3); never with credentials."""

    @app.after_request
    def allow(response: Response) -> Response:
        origin, route = request.headers.get("Origin"), current_route()
        response.vary.add("Origin")
        if origin is None or not origins.may_read(origin, route):
            return response
        headers = response.headers
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _EXPOSED
        if request.method == "OPTIONS" and request.url_rule is not None:
            asked = request.headers.get("Access-Control-Request-Headers", "")
            headers["Access-Control-Allow-Headers"] = ", ".join(name.strip() for name in asked.split(","))
            headers["Access-Control-Allow-Methods"] = headers.get("Allow", "")
        return response


def host_of(url: str) -> str | None:
    """The host's name in lower case, without brackets. None where there is none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _checked(origin: str) -> str:
    """An origin as browsers write it: scheme, host in lower case, a port unless it is the scheme's own; or `null`.

    Raises ConfigError.
    """
    if origin == "null":
        return origin
    proper = _origin_of(origin)
    if proper is None:
        raise ConfigError(
            f"cors_origins: {origin!r} is no web origin; write scheme://host or scheme://host:port, or * for any",
            param="cors_origins",
        )
    if proper != origin:
        raise ConfigError(f"cors_origins: no browser sends {origin!r}; write {proper!r}", param="cors_origins")
    return origin


def _origin_of(url: str) -> str | None:
    """The origin of pages under this URL; None where it is no URL of one."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host or "*" in host or " " in host:
        return None
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")
