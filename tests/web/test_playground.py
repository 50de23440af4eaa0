"""What the page is before anything is drawn: policy, weight, who may see it, and what GET / does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.errors import InvalidRequest
from dalle_server.web.playground import backend_origin, content_security_policy

BROWSER_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def test_the_page_allows_only_its_own_origin(client: FlaskClient) -> None:
    reply = client.get("/playground")
    assert reply.status_code == 200
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "connect-src 'self';" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_a_backend_of_another_server_enters_the_policy(client: FlaskClient) -> None:
    reply = client.get("/playground?backendUrl=https://example.org:8443/base/")
    assert "connect-src 'self' https://example.org:8443;" in reply.headers["Content-Security-Policy"]
    assert 'data-backend="https://example.org:8443/base"' in reply.text


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("", ""),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://LOCALHOST:8000/", "http://localhost:8000"),
        ("https://example.org", "https://example.org"),
        ("http://bücher.example", "http://xn--bcher-kva.example"),
        ("https://user:secret@example.org/x/?q#f", "https://example.org/x"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://x/a-b/c_d~1/%20", "http://x/a-b/c_d~1/%20"),
        ('http://h/`id`/"', "http://h/%60id%60/%22"),
    ],
)
def test_backend_addresses_are_normalised(url: str, origin: str) -> None:
    assert backend_origin(url) == origin
    assert "script-src *" not in content_security_policy(origin).replace("%20", " ")


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "//example.org", "example.org", "http://", "http://a b", "http://a;script-src *",
     "http://a:99999", "http://a,b", "http://h/$(touch${IFS}x)", "http://h/'", "http://h/;id",
     "http://h/a&b", "http://x/'; script-src *", "file:///etc/passwd", "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(client: FlaskClient, url: str) -> None:
    with pytest.raises(InvalidRequest, match="backendUrl"):
        backend_origin(url)
    assert client.get("/playground", query_string={"backendUrl": url}).status_code == 400


def test_the_page_needs_no_key(make_app: Callable[..., Flask]) -> None:
    client = make_app(api_keys=("somebody:" + "k" * 20,)).test_client()
    assert client.get("/playground").status_code == 200
    assert client.get("/playground/static/main.js", buffered=True).status_code == 200
    assert client.get("/v1/jobs").status_code == 401


def test_browsers_are_pointed_to_the_page_and_programs_are_not(client: FlaskClient) -> None:
    pointed = client.get("/", headers={"Accept": BROWSER_ACCEPT})
    assert (pointed.status_code, pointed.location) == (302, "/playground")
    for accept in ("*/*", "text/plain", "application/json, text/plain, */*", None):
        reply = client.get("/", headers={"Accept": accept} if accept else {})
        assert (reply.status_code, reply.text) == (200, "hello world")
        assert "Accept" in reply.headers["Vary"]
