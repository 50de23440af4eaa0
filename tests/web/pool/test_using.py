"""A request that waits for its model: until that is there, or the server goes down."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dalle_server.config import Settings
from dalle_server.web.app import create_app
from dalle_server.web.pool.model import Known, Source
from dalle_server.web.service import Service
from tests.web.scripted_engine import ScriptedEngine


@pytest.mark.parametrize(
    ("first_is_loaded", "path", "body"),
    [
        (False, "/dalle", {"text": "a red apple", "num_images": 1}),
        (True, "/v1/images/generations", {"prompt": "a red apple", "model": "m1"}),
    ],
)
def test_who_waits_for_a_model_when_the_drain_begins_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_is_loaded: bool, path: str, body: Any
) -> None:
    engine, waits = ScriptedEngine(), threading.Event()
    sources = [Source(lambda observer: engine, name) for name in ("m0", "m1")]
    service = Service(Settings(data_dir=tmp_path, request_timeout_s=20), sources=sources)  # nothing is ever loaded
    if first_is_loaded:
        service.pool.first.engine_now, service.pool.first.known = engine, Known.of(engine)
    monkeypatch.setattr("dalle_server.web.pool.using.entered", waits.set)
    client = create_app(service.settings, service).test_client()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.post, path, json=body)
        assert waits.wait(20)
        service.drain()
        reply = pending.result(30)
    assert reply.status_code == 503 and "shutting down" in reply.text
