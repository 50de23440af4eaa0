"""The page at /playground: one template, plain CSS and ES modules, and nothing from anywhere else.

The page is a client of /v1/jobs and /v1/info like any other; `?backendUrl=` makes it one of another server's.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from flask import Blueprint, Response, make_response, render_template, request, send_from_directory
from pydantic import HttpUrl

from dalle_server import __version__
from dalle_server.errors import InvalidRequest
from dalle_server.web.routing import for_anyone

STATIC = Path(__file__).parent / "static"
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_PATH = re.compile(r"[A-Za-z0-9._~%/-]*")  # people copy it into a shell

blueprint = Blueprint(
    "playground",
    __name__,
    url_prefix="/playground",
    template_folder="templates",
)


@blueprint.get("")
@for_anyone("The playground, for people", reply_type="text/html")
def page() -> Response:
    backend = backend_origin(request.args.get("backendUrl", ""))
    response = make_response(render_template("playground/index.html", backend=backend, version=__version__))
    response.headers["Content-Security-Policy"] = content_security_policy(backend)
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-cache"
    return response


@blueprint.get("/static/<path:filename>")
@for_anyone("The page's files", listed=False)
def static(filename: str) -> Response:
    return send_from_directory(STATIC, filename)


def backend_origin(url: str) -> str:
    """The server that the page drives, "" for its own. Raises InvalidRequest for what is no http(s) address.

    It goes into the policy below, so it is parsed and put together again: scheme, host, port and path, no more.
    """
    if not url:
        return ""
    try:
        parts = HttpUrl(url)
        if not _HOST.fullmatch(parts.host or ""):
            raise ValueError("a host that would mean something else in a policy")
        if not _PATH.fullmatch(parts.path or ""):
            raise ValueError("a path that would mean something else in a shell")
    except ValueError:  # pydantic's is one
        raise InvalidRequest(
            f"backendUrl must be the http(s) address of a server, such as http://localhost:8000, not {url[:100]!r}",
            param="backendUrl",
        ) from None
    default_port = {"http": 80, "https": 443}[parts.scheme]
    port = "" if parts.port in (None, default_port) else f":{parts.port}"
    return f"{parts.scheme}://{parts.host}{port}{(parts.path or '').rstrip('/')}"


def content_security_policy(backend: str) -> str:
    """Only this origin's own files; data only from here, or from the one backend that the address names."""
    parts = urlsplit(backend)
    origins = f"'self' {parts.scheme}://{parts.netloc}" if backend else "'self'"
    return "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            f"img-src {origins} data: blob:",
            f"connect-src {origins}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
