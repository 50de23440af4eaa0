"""The original server's contract, as its clients know it."""

import base64
import io
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from dalle_server.config import Settings
from dalle_server.errors import Overloaded
from dalle_server.pictures import saving
from dalle_server.pictures.metadata import read_metadata
from dalle_server.web.app import create_app
from dalle_server.web.service import Service
from tests.web.scripted_engine import ScriptedEngine

MakeApp = Callable[..., Flask]


def test_hello_world(client: FlaskClient) -> None:
    reply = client.get("/")
    assert (reply.status_code, reply.text, reply.mimetype) == (200, "hello world", "text/plain")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_pictures_come_as_base64_under_both_names(make_app: MakeApp, image_format: str) -> None:
    reply = (
        make_app(img_format=image_format).test_client().post("/dalle", json={"text": "a red apple", "num_images": 3})
    )
    assert reply.status_code == 200 and reply.json is not None
    assert set(reply.json) == {"generatedImages", "generatedImgs", "generatedImgsFormat"}
    assert reply.json["generatedImgs"] == reply.json["generatedImages"]
    assert reply.json["generatedImgsFormat"] == image_format
    files = [base64.b64decode(text) for text in reply.json["generatedImages"]]
    assert [Image.open(io.BytesIO(file)).format for file in files] == [image_format] * 3
    assert [read_metadata(file).image_index for file in files] == [0, 1, 2]
    assert {read_metadata(file).prompt for file in files} == {"a red apple"}


def test_json_is_read_whatever_the_content_type(client: FlaskClient) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", None):
        reply = client.post("/dalle", data='{"text": "x", "num_images": 1}', content_type=content_type)
        assert reply.status_code == 200


def test_unknown_fields_are_ignored(client: FlaskClient) -> None:
    assert client.post("/dalle", json={"text": "x", "num_images": 1, "steps": []}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"num_images": 1}, "text"),
        ({"text": 5, "num_images": 1}, "text"),
        ({"text": None, "num_images": 1}, "text"),
        ({"text": "", "num_images": 1}, "text"),
        ({"text": " \n", "num_images": 1}, "text"),
        ({"text": "x", "num_images": 0}, "num_images"),
        ({"text": "x", "num_images": -1}, "num_images"),
        ({"text": "x", "num_images": 17}, "num_images"),
        ({"text": "x", "num_images": 10**9}, "num_images"),
        ({"text": "x", "num_images": 10**30}, "num_images"),
        ({"text": "x", "num_images": True}, "num_images"),
        ({"text": "x", "num_images": "3"}, "num_images"),
        ({"text": "x", "num_images": 1.5}, "num_images"),
        ([], None),
        ("x", None),
    ],
)
def test_wrong_bodies_are_refused_by_name(client: FlaskClient, body: object, param: str | None) -> None:
    reply = client.post("/dalle", json=body)
    assert reply.status_code == 400 and reply.json is not None
    assert reply.json["param"] == param
    assert param is None or reply.json["error"].startswith(param)


@pytest.mark.parametrize("body", [b"", b"{", b"\x00", b"[" * 10_000, b'{"text": "\\ud800", "num_images": 1}'])
def test_bad_json_is_refused(client: FlaskClient, body: bytes) -> None:
    reply = client.post("/dalle", data=body)
    assert reply.status_code == 400 and reply.json is not None
    assert isinstance(reply.json["error"], str)


def test_maximum_is_a_setting(make_app: MakeApp) -> None:
    client = make_app(max_images=2).test_client()
    assert client.post("/dalle", json={"text": "x", "num_images": 2}).status_code == 200
    assert client.post("/dalle", json={"text": "x", "num_images": 3}).status_code == 400


def test_full_queue_is_refused(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.submit_error = Overloaded("the queue is full", retry_after_s=3)
    reply = client.post("/dalle", json={"text": "x", "num_images": 1})
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "3")


def test_leaving_cancels(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    reply = client.post(
        "/dalle",
        json={"text": "x", "num_images": 1},
        environ_overrides={"waitress.client_disconnected": lambda: True},
    )
    assert reply.status_code == 499
    assert engine.generations[0].cancel_reason == "the client left"


def test_a_request_waits_for_the_model(engine: ScriptedEngine, tmp_path: Path) -> None:
    loaded = threading.Event()

    def load() -> ScriptedEngine:
        loaded.wait(30)
        return engine

    service = Service(Settings(output_dir=tmp_path), load=load)
    service.start_loading()
    threading.Timer(0.1, loaded.set).start()
    client = create_app(service.settings, service).test_client()
    assert client.post("/dalle", json={"text": "x", "num_images": 1}).status_code == 200


def test_pictures_are_saved(make_app: MakeApp, tmp_path: Path) -> None:
    client = make_app(save_to_disk=True, output_dir=tmp_path / "out").test_client()
    for _ in range(2):
        assert client.post("/dalle", json={"text": "a/../b: x", "num_images": 2}).status_code == 200
    directories = sorted((tmp_path / "out").iterdir())
    assert len(directories) == 2
    for directory in directories:
        assert re.match(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_a_\.\._b_ x", directory.name)
        assert sorted(file.name for file in directory.iterdir()) == ["0.jpeg", "1.jpeg"]


def test_a_disk_that_fails_costs_no_picture(make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the directory should be")
    client = make_app(save_to_disk=True, output_dir=tmp_path / "out").test_client()
    assert client.post("/dalle", json={"text": "x", "num_images": 1}).status_code == 200


def test_a_disk_that_fails_puts_no_prompt_into_the_log(
    make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(saving, "write_whole", refuse)
    client = make_app(save_to_disk=True).test_client()
    assert client.post("/dalle", json={"text": "my secret"}).status_code == 200
    assert "No space left on device" in caplog.text and str(tmp_path) in caplog.text
    assert "secret" not in caplog.text
