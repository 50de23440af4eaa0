"""What each route says about itself, and that none may say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient

from dalle_server.config import Settings
from dalle_server.web import app as web_app
from dalle_server.web.app import create_app
from dalle_server.web.routing import Route, routes
from dalle_server.web.service import Service
from tests.web.scripted_engine import ScriptedEngine


def those(app: Flask, wanted: Callable[[Route], bool]) -> set[str]:
    return {rule.rule for rule, route in routes(app) if wanted(route)}


def test_a_route_that_says_nothing_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Api:
        blueprint = Blueprint("silent", __name__)

    @Api.blueprint.get("/v2/secrets")
    def secrets() -> str:
        return ""

    monkeypatch.setattr(web_app, "APIS", (*web_app.APIS, Api))
    settings = Settings(data_dir=tmp_path, output_dir=tmp_path)
    with pytest.raises(TypeError, match=r"/v2/secrets \(silent\.secrets\) says nothing"):
        create_app(settings, Service(settings, load=ScriptedEngine))


def test_what_is_open_to_anyone(app: Flask) -> None:
    """A list of its own, on purpose: opening a route takes two decisions."""
    assert those(app, lambda route: route.access == "anyone") == {
        "/",
        "/health",
        "/ready",
        "/docs",
        "/openapi.json",
        "/pictures/<name>",
        "/playground",
        "/playground/static/<path:filename>",
    }


def test_what_makes_pictures_counts(app: Flask) -> None:
    costly = those(app, lambda route: route.cost == "pictures")
    assert costly >= {"/dalle", "/v1/images/generations", "/v1/jobs", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"}
    assert not costly & those(app, lambda route: route.access == "anyone")


def test_what_is_somebodys_own(app: Flask) -> None:
    owned = those(app, lambda route: route.owned)
    jobs = {rule.rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/v1/jobs")}
    assert owned >= jobs | {"/sdapi/v1/progress", "/sdapi/v1/interrupt", "/v1/info", "/metrics"}


def test_vital_routes_have_plain_paths(app: Flask) -> None:
    """Admission knows them by their path, before the application sees the request."""
    assert those(app, lambda route: route.vital) == {"/", "/health", "/ready", "/metrics"}


def test_what_is_nowhere_needs_no_key(make_app: Callable[..., Flask]) -> None:
    client: FlaskClient = make_app(api_keys=("alice:sesame-open",)).test_client()
    assert client.get("/v1/nowhere").status_code == 404
    assert client.delete("/v1/images/generations").status_code == 405
