"""The life of a drawing request: counts, budgets, and files that are made in few places and in the request's time."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.request import GenerationRequest
from dalle_server.web import drawing
from dalle_server.web.service import ENCODERS, EXTENSION, Service
from tests.web.scripted_engine import ScriptedEngine

MakeApp = Callable[..., Flask]


def service_of(app: Flask) -> Service:
    service: Service = app.extensions[EXTENSION]
    return service


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/dalle", {"text": "x", "num_images": 3}, "num_images must lie between 1 and 2, not 3"),
        ("/generate", {"text": "x", "num_images": 3}, "num_images must lie between 1 and 2, not 3"),
        ("/v1/images/generations", {"prompt": "x", "n": 3}, "n must lie between 1 and 2, not 3"),
        ("/sdapi/v1/txt2img", {"prompt": "x", "n_iter": 3}, "batch_size × n_iter must lie between 1 and 2, not 3"),
    ],
)
def test_every_dialect_counts_by_its_own_name(make_app: MakeApp, path: str, body: Any, message: str) -> None:
    reply = make_app(max_images=2).test_client().post(path, json=body)
    assert reply.status_code == 400
    assert message in reply.text.encode().decode("unicode_escape") or message in str(reply.json)


@pytest.mark.parametrize("path", ["/v1/images/generations", "/sdapi/v1/txt2img"])
def test_enlarged_pictures_have_a_common_bound(client: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(drawing, "MAX_PIXELS", 4 * 32 * 32)
    sized = {"size": "32x32", "width": 32, "height": 32}
    assert client.post(path, json={"prompt": "x", "n": 4, "batch_size": 4, **sized}).status_code == 200
    refused = client.post(path, json={"prompt": "x", "n": 5, "batch_size": 5, **sized})
    assert refused.status_code == 400
    assert "5 of 32x32 are 5,120 pixels, and one request may have 4,096" in refused.text
    small = {"size": "16x16", "width": 16, "height": 16}  # the model's own size costs nothing more
    monkeypatch.setattr(drawing, "MAX_PIXELS", 1)
    assert client.post(path, json={"prompt": "x", "n": 5, "batch_size": 5, **small}).status_code == 200


def test_few_files_are_made_at_the_same_time(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(*args: Any, **kwargs: Any) -> bytes:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return b"file"

    monkeypatch.setattr(drawing, "encode_image", slow)
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(app.test_client().post("/dalle", json={"text": "x", "num_images": 3}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 6
    assert most == ENCODERS


def test_waiting_for_a_place_is_part_of_the_requests_time(make_app: MakeApp) -> None:
    app = make_app(request_timeout_s=0.2)
    for _ in range(ENCODERS):
        service_of(app).encoders.acquire()
    reply = app.test_client().post("/v1/images/generations", json={"prompt": "x"})
    assert (reply.status_code, reply.json["error"]["code"]) == (504, "deadline_exceeded")
    assert "in the request's time" in reply.json["error"]["message"]


def test_a_stream_whose_picture_cannot_be_encoded_in_time_says_so_once(make_app: MakeApp) -> None:
    app = make_app(request_timeout_s=0.2)
    for _ in range(ENCODERS):
        service_of(app).encoders.acquire()
    reply = app.test_client().post("/v1/images/generations", json={"prompt": "x", "n": 2, "stream": True})
    assert reply.text.count("event: error") == 1
    assert "deadline_exceeded" in reply.text
    assert "completed" not in reply.text


def test_files_are_not_made_for_a_client_that_left(app: Flask, engine: ScriptedEngine) -> None:
    left = threading.Event()
    for _ in range(ENCODERS):
        service_of(app).encoders.acquire()
    statuses: list[int] = []

    def ask() -> None:
        environ = {"waitress.client_disconnected": left.is_set}
        reply = app.test_client().post("/dalle", json={"text": "x"}, environ_overrides=environ)
        statuses.append(reply.status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "it waits for a place"
    left.set()
    thread.join(5)
    assert statuses == [499]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/edits", {"prompt": "x", "images": [{"image_url": "data:,"}]}),
        ("/v1/images/variations", {}),
        ("/v1/images/score", {"prompt": "x", "image": "eA=="}),
        ("/sdapi/v1/img2img", {"init_images": ["eA=="]}),
    ],
)
def test_a_full_queue_refuses_pictures_unread(make_app: MakeApp, engine: ScriptedEngine, path: str, body: Any) -> None:
    client = make_app(max_waiting_images=1).test_client()
    engine.gate.clear()
    for _ in range(5):  # four slots and one place
        engine.submit(GenerationRequest.of("x"))
    reply = client.post(path, json=body)
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "5")
    engine.gate.set()
