"""Reverse proxies: who is believed, and what addresses clients are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, request

from dalle_server.config import Settings
from dalle_server.errors import ConfigError
from dalle_server.web.serving import forwarded
from dalle_server.web.serving.forwarded import Forwarded
from dalle_server.web.serving.http_server import HttpServer
from tests.web.serving.raw import connect, reply_of

MakeApp = Callable[..., Flask]


def seen(headers: dict[str, str], peer: str = "10.0.0.9", path: str = "/x", **settings: Any) -> dict[str, str]:
    """What the application sees of a request of `peer`."""
    app = Flask("t", static_folder=None)
    app.url_map.host_matching = False

    @app.get("/<path:rest>")
    def show(rest: str) -> dict[str, str]:
        return {"address": request.remote_addr or "", "path": request.path, "root": forwarded.root_url()}

    forwarded.install(app, Settings(**settings))
    reply = app.test_client().get(path, headers=headers, environ_overrides={"REMOTE_ADDR": peer})
    assert reply.json is not None
    return dict(reply.json)


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded_for", "address"),
    [
        ("10.0.0.9", "10.0.0.9", "203.0.113.5", "203.0.113.5"),
        ("10.0.0.0/8", "10.0.0.9", "203.0.113.5", "203.0.113.5"),
        ("127.0.0.1, ::1, 10.0.0.0/8", "::1", "203.0.113.5", "203.0.113.5"),
        ("10.0.0.0/8", "10.0.0.9", "6.6.6.6, 203.0.113.5", "203.0.113.5"),  # only the proxy's own word counts
        ("10.0.0.0/8", "10.0.0.9", "203.0.113.5, 10.1.1.1", "203.0.113.5"),  # through two of ours
        ("10.0.0.0/8", "10.0.0.9", "10.2.2.2", "10.2.2.2"),  # a client inside
        ("10.0.0.0/8", "10.0.0.9", "203.0.113.5:4711", "203.0.113.5"),
        ("10.0.0.0/8", "10.0.0.9", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.0/8", "10.0.0.9", "2001:db8::1", "2001:db8::1"),
        ("10.0.0.0/8", "10.0.0.9", "6.6.6.6, nonsense", "10.0.0.9"),
        ("10.0.0.0/8", "10.0.0.9", "", "10.0.0.9"),
        ("10.0.0.0/8", "192.0.2.1", "203.0.113.5", "192.0.2.1"),
        ("", "10.0.0.9", "203.0.113.5", "10.0.0.9"),
    ],
)
def test_whose_word_counts(trusted: str, peer: str, forwarded_for: str, address: str) -> None:
    assert seen({"X-Forwarded-For": forwarded_for}, peer, trusted_proxy=trusted)["address"] == address


@pytest.mark.parametrize("proxy", ["nginx", "10.0.0.0/99", "*", "10.0.0.1:80", "10.0.0.1, nginx"])
def test_a_senseless_proxy_stops_the_start(proxy: str) -> None:
    with pytest.raises(ConfigError, match=r"trusted_proxy: .* is neither an address nor a network"):
        Forwarded(Flask("t"), Settings(trusted_proxy=proxy))


HEADERS = {
    "Host": "127.0.0.1:8000",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "pictures.example.org",
    "X-Forwarded-Prefix": "/dalle/",
}


def test_a_sub_path_that_the_proxy_takes_off() -> None:
    assert seen(HEADERS, path="/x", trusted_proxy="10.0.0.9") == {
        "address": "10.0.0.9",
        "path": "/x",
        "root": "https://pictures.example.org/dalle/",
    }


def test_a_sub_path_that_the_proxy_leaves_on() -> None:
    assert seen(HEADERS, path="/dalle/x", trusted_proxy="10.0.0.9")["path"] == "/x"


@pytest.mark.parametrize("by_header", [True, False])
@pytest.mark.parametrize(
    ("prefix", "method", "path", "status"),
    [
        ("/dalle", "POST", "/dalle", 200),  # nginx.conf's own sub-path, taken off: the original's route
        ("/dalle", "POST", "/dalle/dalle", 200),
        ("/dalle", "GET", "/dalle", 200),  # left on: the root page
        ("/dalle", "GET", "/", 200),
        ("/generate", "POST", "/generate", 200),
        ("/generate", "POST", "/generate/generate", 200),
        ("/generate", "POST", "/dalle", 200),
        ("/v1", "GET", "/v1/models", 200),
        ("/v1", "GET", "/v1/v1/models", 200),
        ("/v1", "GET", "/v1/nothing", 404),
    ],
)
def test_a_sub_path_that_is_called_like_a_route(
    make_app: MakeApp, by_header: bool, prefix: str, method: str, path: str, status: int
) -> None:
    settings = {"trusted_proxy": "127.0.0.1"} if by_header else {"public_url": f"http://pics.example.org{prefix}"}
    headers = {"X-Forwarded-Prefix": prefix} if by_header else {}
    body = {"text": "a"} if method == "POST" else None
    client = make_app(**settings).test_client()
    assert client.open(path, method=method, headers=headers, json=body).status_code == status
    asked = {"Origin": "https://a", "Access-Control-Request-Method": method, **headers}
    allowed = client.options(path, headers=asked).headers.get("Allow", "")
    assert (method in allowed) == (status == 200)


def test_headers_of_others_change_nothing() -> None:
    assert seen(HEADERS, path="/x") == {"address": "10.0.0.9", "path": "/x", "root": "http://127.0.0.1:8000/"}


def test_values_that_would_mean_something_else_are_left_aside() -> None:
    hostile = {
        "Host": "h",
        "X-Forwarded-Host": "a/b",
        "X-Forwarded-Prefix": "//evil",
        "X-Forwarded-Proto": "javascript",
    }
    assert seen(hostile, trusted_proxy="10.0.0.9")["root"] == "http://h/"


def test_public_url_is_where_results_point(make_app: MakeApp) -> None:
    client = make_app(public_url="https://example.org/dalle").test_client()
    reply = client.post("/v1/images/generations", json={"prompt": "x", "response_format": "url"})
    assert reply.json is not None
    url = reply.json["data"][0]["url"]
    assert url.startswith("https://example.org/dalle/pictures/")
    for origin in ("https://example.org", "https://example.org/dalle"):
        assert client.get(url.removeprefix(origin), buffered=True).status_code == 200
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.headers["Location"] == "/dalle/playground"
    job = client.post("/v1/jobs", json={"prompt": "x"})
    assert job.json is not None and job.headers["Location"] == f"/dalle/v1/jobs/{job.json['id']}"


@pytest.mark.parametrize(
    "url",
    ["example.org", "ftp://example.org", "https://", "https://a?x=1", "https://a/b c", "https://[", "https://a:0/"],
)
def test_a_senseless_public_url_stops_the_start(url: str) -> None:
    with pytest.raises(ConfigError, match="public_url: expected the address"):
        Forwarded(Flask("t"), Settings(public_url=url))


def test_a_refusal_before_the_body_knows_its_api_behind_a_prefix(start: Callable[..., HttpServer]) -> None:
    """Of a proxy that leaves the prefix on: the path that came names no API."""
    server = start(public_url="https://example.org/pics", api_keys=("alice:sesame-open",))
    for path, challenge, kind in (
        ("/sdapi/v1/txt2img", "Basic", str),
        ("/dalle", "Bearer", str),
        ("/v1/jobs", "Bearer", dict),
    ):
        head = f"POST /pics{path} HTTP/1.1\r\nHost: example.org\r\nContent-Length: 100\r\n\r\n".encode()
        with connect(server, head) as connection:
            status, error, headers = reply_of(connection)
        assert (status, type(error["error"])) == (401, kind)
        assert headers["WWW-Authenticate"].startswith(challenge)
