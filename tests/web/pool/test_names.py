"""Every answer calls a model as this server does, whatever its checkpoint calls itself."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from dalle_server.config import Settings
from dalle_server.pictures.metadata import read_metadata
from dalle_server.web.app import create_app
from dalle_server.web.pool.model import Source
from dalle_server.web.service import Service
from tests.web.scripted_engine import ScriptedEngine

THIRD = {"override_settings": {"sd_model_checkpoint": "third"}}


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    """Two models, whose checkpoints are both called "scripted"."""
    engines = {"first": ScriptedEngine(), "third": ScriptedEngine(digest="f" * 64)}
    sources = [Source(lambda observer, engine=engine: engine, name) for name, engine in engines.items()]  # type: ignore[misc]
    service = Service(Settings(data_dir=tmp_path), sources=sources)
    service.start_loading()
    assert service.wait_until_loaded(30)
    return create_app(service.settings, service).test_client()


def post(client: FlaskClient, path: str, body: Any) -> Any:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json


def test_the_web_uis_info_its_text_chunk_and_png_info(client: FlaskClient) -> None:
    reply = post(client, "/sdapi/v1/txt2img", {"prompt": "a red apple", "seed": 3, **THIRD})
    info = json.loads(reply["info"])
    assert info["sd_model_name"] == "third"
    assert "Model: third, " in info["infotexts"][0]
    file = base64.b64decode(reply["images"][0])
    assert Image.open(io.BytesIO(file)).info["parameters"] == info["infotexts"][0]
    assert post(client, "/sdapi/v1/png-info", {"image": reply["images"][0]})["info"] == info["infotexts"][0]
    assert read_metadata(file).model == "scripted", "other servers know it by this name"


def test_png_info_of_weights_that_are_not_here(client: FlaskClient, tmp_path: Path) -> None:
    other = Service(Settings(data_dir=tmp_path / "other"), load=lambda: ScriptedEngine(digest="e" * 64))
    other.start_loading()
    assert other.wait_until_loaded(30)
    image = post(create_app(other.settings, other).test_client(), "/sdapi/v1/txt2img", {"prompt": "x"})["images"][0]
    assert post(client, "/sdapi/v1/png-info", {"image": image})["parameters"]["Model"] == "scripted"


def test_a_response_that_names_no_model(client: FlaskClient) -> None:
    body = {"input": "a red apple", "tools": [{"type": "image_generation", "model": "third"}]}
    assert post(client, "/v1/responses", body)["model"] == "third"
