"""A client of the application on a scripted engine. `engine` steers it; `settings_kw` overrides settings per test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.config import Settings
from dalle_server.web.app import create_app
from dalle_server.web.service import Service
from tests.web.scripted_engine import ScriptedEngine


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine()
    yield engine
    engine.gate.set()  # a test that failed while it was shut leaves nobody waiting


@pytest.fixture
def make_app(engine: ScriptedEngine, tmp_path: Path) -> Callable[..., Flask]:
    """make_app(**settings) → a ready application."""

    def make(**settings_kw: Any) -> Flask:
        paths = {"output_dir": tmp_path / "generations", "data_dir": tmp_path / "data"}
        settings = Settings(**{**paths, **settings_kw})
        service = Service(settings, load=lambda: engine)
        engine.observer = service.bookkeeping
        service.start_loading()
        assert service.wait_until_loaded(30)
        return create_app(settings, service)

    return make


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()
