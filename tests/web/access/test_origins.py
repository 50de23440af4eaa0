"""What other people's web pages can read, do and pretend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.config import Settings
from dalle_server.errors import ConfigError
from dalle_server.web.access.origins import Origins

MakeApp = Callable[..., Flask]
BODY = {"text": "x", "num_images": 1}


@pytest.mark.parametrize("path", ["/dalle", "/v1/images/generations", "/sdapi/v1/txt2img"])
def test_any_origin_with_any_header_by_default(client: FlaskClient, path: str) -> None:
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "bypass-tunnel-reminder, content-type",
    }
    reply = client.options(path, headers=asked)
    assert reply.headers["Access-Control-Allow-Origin"] in ("*", "https://example.org")
    assert "bypass-tunnel-reminder" in reply.headers["Access-Control-Allow-Headers"]
    assert "POST" in reply.headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in reply.headers


def test_the_originals_page_may_ask_whether_a_server_is_there(client: FlaskClient) -> None:
    """Its `checkIfValidBackend`: a GET of / with headers of its own, which browsers ask leave for."""
    asked = {"Origin": "https://a", "Access-Control-Request-Headers": "bypass-tunnel-reminder,mode"}
    preflight = client.options("/", headers=asked | {"Access-Control-Request-Method": "GET"})
    assert preflight.headers["Access-Control-Allow-Headers"] == "bypass-tunnel-reminder, mode"
    assert client.get("/", headers={"Origin": "https://a"}).headers["Access-Control-Allow-Origin"] in ("*", "https://a")
    assert "Access-Control-Allow-Origin" not in client.get("/openapi.json", headers={"Origin": "https://a"}).headers


def test_refusals_carry_cors_headers_too(client: FlaskClient) -> None:
    reply = client.post("/dalle", json={}, headers={"Origin": "https://example.org"})
    assert reply.status_code == 400 and "Access-Control-Allow-Origin" in reply.headers
    assert "Origin" in reply.headers["Vary"]


def test_origins_are_a_setting(make_app: MakeApp) -> None:
    client = make_app(cors_origins="https://mine").test_client()
    other = client.get("/v1/models", headers={"Origin": "https://a"})
    assert "Access-Control-Allow-Origin" not in other.headers
    allowed = client.post("/dalle", json=BODY, headers={"Origin": "https://mine"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://mine"


@pytest.mark.parametrize("origins", ["https://a", "*,https://a"])
def test_other_peoples_pages_cannot_read_jobs_unless_named(
    client: FlaskClient, make_app: MakeApp, tmp_path: Path, origins: str
) -> None:
    asked = {"Origin": "https://a"}
    assert "Access-Control-Allow-Origin" not in client.get("/v1/jobs", headers=asked).headers
    named = make_app(cors_origins=origins, data_dir=tmp_path / "other").test_client()
    assert named.get("/v1/jobs", headers=asked).headers["Access-Control-Allow-Origin"] == "https://a"
    assert "Access-Control-Allow-Origin" not in named.get("/v1/jobs", headers={"Origin": "https://b"}).headers


@pytest.mark.parametrize(
    ("origin", "says"),
    [
        ("https://a/", "write 'https://a'"),
        ("https://A.example", "write 'https://a.example'"),
        ("https://a:443", "write 'https://a'"),
        ("https://a/path?x", "write 'https://a'"),
        ("example.org", "is no web origin"),
        ("https://*.example.org", "is no web origin"),
        ("https://", "is no web origin"),
        ("https://[", "is no web origin"),
        ("https://a:port", "is no web origin"),
    ],
)
def test_an_origin_that_no_browser_sends_stops_the_start(origin: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Origins(Settings(cors_origins=(origin,)))
    assert says in str(refused.value)


@pytest.mark.parametrize("origin", ["https://a", "http://[::1]:8000", "http://localhost:3000", "null"])
def test_origins_as_browsers_write_them(make_app: MakeApp, origin: str) -> None:
    client = make_app(cors_origins=(origin,)).test_client()
    assert client.get("/v1/models", headers={"Origin": origin}).headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize("path", ["/v1/jobs", "/sdapi/v1/interrupt"])
def test_other_peoples_pages_cannot_act_on_jobs_unless_named(
    client: FlaskClient, make_app: MakeApp, tmp_path: Path, path: str
) -> None:
    """A browser sends a simple POST, such as a form's, without asking first."""
    sent = {"Origin": "https://a", "Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"}
    refused = client.post(path, data='{"prompt": "x"}', headers=sent)
    assert refused.status_code == 403 and "cors_origins" in refused.text
    own = client.post(path, data='{"prompt": "x"}', headers=sent | {"Sec-Fetch-Site": "same-origin"})
    other = make_app(cors_origins="https://a", data_dir=tmp_path / "other").test_client()
    named = other.post(path, data='{"prompt": "x"}', headers=sent)
    assert own.status_code < 400
    assert named.status_code < 400


def test_where_origins_are_named_other_pages_cannot_draw_either(make_app: MakeApp, tmp_path: Path) -> None:
    """A text/plain POST needs no leave, and the drawing would be done, and saved, though nobody reads the answer."""
    sent = {"Origin": "https://a", "Content-Type": "text/plain"}
    strict = make_app(cors_origins="https://mine", save_to_disk=True).test_client()
    assert strict.post("/dalle", data='{"text": "x"}', headers=sent).status_code == 403
    assert (
        strict.post("/dalle", data='{"text": "x"}', headers=sent | {"Sec-Fetch-Site": "cross-site"}).status_code == 403
    )
    assert not (tmp_path / "generations").exists()
    assert strict.post("/dalle", data='{"text": "x"}', headers=sent | {"Origin": "https://mine"}).status_code == 200
    assert strict.post("/dalle", data='{"text": "x"}', headers={"Content-Type": "text/plain"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil", 403),
        ("null", 403),
        ("http://[", 403),
        ("http://my-server:8000", 200),
        ("http://my-server", 200),
        (None, 200),
    ],
)
def test_over_plain_http_browsers_say_only_the_origin(client: FlaskClient, origin: str | None, status: int) -> None:
    """Sec-Fetch-Site comes over https and on this machine only."""
    sent = {"Host": "my-server:8000"} | ({"Origin": origin} if origin else {})
    assert client.post("/sdapi/v1/interrupt", headers=sent).status_code == status


@pytest.mark.parametrize(
    ("public_url", "origin", "may"),
    [
        ("http://pics.example.org/dalle", "http://pics.example.org", True),
        ("http://Pics.example.org:80", "http://pics.example.org", True),
        ("https://pics.example.org:8443/dalle", "https://pics.example.org:8443", True),
        ("https://pics.example.org:8443/dalle", "https://pics.example.org", False),
        ("https://pics.example.org", "http://pics.example.org", False),
        ("https://pics.example.org", "https://evil.example.org", False),
        ("https://pics.example.org", "null", False),
        (None, "http://pics.example.org", False),
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/sdapi/v1/interrupt"])
def test_a_page_under_public_url_is_the_servers_own(
    make_app: MakeApp, path: str, public_url: str | None, origin: str, may: bool
) -> None:
    """Behind a proxy that sends a Host of its own."""
    client = make_app(public_url=public_url).test_client()
    reply = client.post(path, json={"prompt": "x"}, headers={"Host": "dalle", "Origin": origin})
    assert (reply.status_code < 400) == may, reply.text
    assert may or reply.status_code == 403


def test_other_peoples_pages_cannot_watch_a_picture_being_written(client: FlaskClient) -> None:
    reply = client.get("/sdapi/v1/progress", headers={"Origin": "https://a"})
    assert reply.status_code == 200 and "Access-Control-Allow-Origin" not in reply.headers
    assert "Access-Control-Allow-Origin" in client.get("/sdapi/v1/samplers", headers={"Origin": "https://a"}).headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("rebound.example.com:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("[", 403),
        ("192.168.1.7:8000", 200),
        ("[::1]:8000", 200),
        ("[fe80::1%25eth0]:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("app.localhost", 200),
        ("dalle", 200),
        ("my-server.local:8000", 200),
        ("pictures.example.org", 200),
        ("named.example.org:8000", 200),
    ],
)
def test_a_name_that_someone_else_points_here_sees_no_gallery(make_app: MakeApp, host: str, status: int) -> None:
    """DNS rebinding: to the browser the page of rebound.example.com is this server's own."""
    settings = {"public_url": "https://pictures.example.org", "cors_origins": ("*", "http://named.example.org:8000")}
    client = make_app(**settings).test_client()
    reply = client.get("/v1/jobs", headers={"Host": host})
    assert reply.status_code == status
    assert status == 200 or "public_url" in reply.text
    # What any page may do, through a tunnel's name too, as with the original.
    assert client.post("/dalle", json=BODY, headers={"Host": host or "x"}).status_code == 200
    assert client.get("/health", headers={"Host": host or "x"}).status_code == 200


def test_a_key_guards_under_any_name(make_app: MakeApp) -> None:
    client = make_app(api_keys="alice:sesame-open").test_client()
    sent = {"Host": "pictures.example.com", "x-api-key": "sesame-open"}
    assert client.get("/v1/jobs", headers=sent).status_code == 200
