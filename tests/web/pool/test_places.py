"""A place in the queue before a body is read, where the body names the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask

from dalle_server.config import Settings
from dalle_server.errors import Overloaded
from dalle_server.web.pool.model import Source
from dalle_server.web.service import Service
from tests.web.scripted_engine import ScriptedEngine

FULL = Overloaded("the queue is full", retry_after_s=3)


@pytest.fixture
def engines() -> list[ScriptedEngine]:
    return [ScriptedEngine(), ScriptedEngine()]


@pytest.fixture
def service(engines: list[ScriptedEngine], tmp_path: Path) -> Service:
    """Two models, both loaded."""
    sources = [Source(lambda observer, engine=engine: engine, f"m{i}") for i, engine in enumerate(engines)]  # type: ignore[misc]
    service = Service(Settings(data_dir=tmp_path), sources=sources)
    for model, engine in zip(service.pool.models, engines, strict=True):
        model.engine_now = engine
    return service


def held(engines: list[ScriptedEngine]) -> list[int]:
    return [engine.num_held for engine in engines]


def test_any_models_place_is_held_until_the_model_is_known(service: Service, engines: list[ScriptedEngine]) -> None:
    app = Flask("t")
    with app.test_request_context("/"):
        service.hold("a")
        assert held(engines) == [1, 0]
        service.hold("a", service.pool.models[1])
        assert held(engines) == [0, 1]
        service.hold("a", service.pool.models[1])
        assert held(engines) == [0, 1]
        app.process_response(app.make_response("told"))
        assert held(engines) == [0, 0]


def test_a_full_model_is_no_reason_to_refuse_another(service: Service, engines: list[ScriptedEngine]) -> None:
    engines[0].submit_error = FULL
    with Flask("t").test_request_context("/"):
        service.hold("a")
        assert held(engines) == [0, 1]
        with pytest.raises(Overloaded):
            service.hold("a", service.pool.models[0])
    engines[1].submit_error = FULL
    with Flask("t").test_request_context("/"), pytest.raises(Overloaded):
        service.hold("a")
    service.pool.models[1].engine_now = None  # not loaded: it has room
    with Flask("t").test_request_context("/"):
        service.hold("a")
    assert held(engines) == [0, 0]
