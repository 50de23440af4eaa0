"""The life of a drawing request: counts, budgets, and files that are made in few places and in the request's time."""

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Request
from flask.testing import FlaskClient
from PIL import Image

from dalle_server.drawing import form
from dalle_server.errors import Overloaded
from dalle_server.request import GenerationRequest
from dalle_server.web import drawing
from dalle_server.web.routing import routes
from dalle_server.web.service import ENCODERS, EXTENSION, Service
from tests.fake_runner import FakeRunner, fake_config
from tests.web.live import Live, live
from tests.web.scripted_engine import ScriptedEngine

MakeApp = Callable[..., Flask]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


PNG = _png(Image.new("RGB", (16, 16), (80, 80, 80)))
URL = _url(PNG)
HOLE = Image.new("L", (16, 16))
HOLE.paste(255, (0, 0, 8, 8))
MASK = _url(_png(HOLE))


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


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose queue and slots hold eight pictures together."""
    runner = FakeRunner(fake_config(grid_side=4), num_slots=4)
    with live(tmp_path_factory.mktemp("data"), runner, max_waiting_images=4) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/dalle", {"text": "x", "num_images": 9}, "num_images", "num_images must be at most 8 on this server, not 9"),
        ("/v1/images/generations", {"prompt": "x", "n": 9}, "n", "n must be at most 8 on this server, not 9"),
        ("/v1/images/generations", {"prompt": "x", "n": 2, "best_of": 9}, "best_of", "best_of must be at most 8"),
        ("/v1/images/edits", {"prompt": "x", "candidates": 9}, "candidates", "candidates × n must be at most 8"),
        ("/sdapi/v1/txt2img", {"prompt": "x", "n_iter": 9}, None, "batch_size × n_iter must be at most 8"),
    ],
)
def test_what_no_queue_of_this_server_holds_is_told_in_the_dialects_words(
    small: Live, path: str, body: Any, param: str | None, says: str
) -> None:
    hole = {"images": [{"image_url": URL}], "mask": {"image_url": MASK}} if "candidates" in body else {}
    asked = urllib.request.Request(f"{small.url}{path}", json.dumps(body | hole).encode())
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=30)
    reply = json.load(refused.value)
    assert refused.value.code == 400
    assert says in json.dumps(reply, ensure_ascii=False)
    told = reply["error"] if isinstance(reply["error"], dict) else reply
    assert told.get("param") == param


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

    monkeypatch.setattr(form, "encode_image", slow)
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
    thread.join(30)
    assert statuses == [499]


# Every route that takes pictures, with a body that it takes.
TAKERS: dict[str, dict[str, Any]] = {
    "/v1/images/edits": {"json": {"prompt": "x", "images": [{"image_url": URL}]}},
    "/v1/images/edits as a form": {"data": {"prompt": "x", "image": (PNG, "a.png")}},
    "/v1/images/variations": {"data": {"image": (PNG, "a.png")}},
    "/v1/images/score": {"json": {"prompt": "x", "image": URL}},
    "/v1/responses": {
        "json": {
            "tools": [{"type": "image_generation"}],
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": URL}],
                }
            ],
        }
    },
    "/v1/jobs": {"json": {"prompt": "x", "image": URL}},
    "/v1/jobs as a form": {"data": {"prompt": "x", "image": (PNG, "a.png")}},
    "/sdapi/v1/txt2img": {"json": {"prompt": "x"}},
    "/sdapi/v1/img2img": {"json": {"prompt": "x", "init_images": [URL]}},
    "/sdapi/v1/extra-single-image": {"json": {"image": URL}},
    "/sdapi/v1/extra-batch-images": {"json": {"imageList": [{"data": URL}]}},
    "/sdapi/v1/png-info": {"json": {"image": URL}},
}
# These ask nothing of the engine: they take one of the few places in which pictures are read and made into files.
WITHOUT_THE_ENGINE = ("/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images", "/sdapi/v1/png-info")


def sent(name: str) -> tuple[str, dict[str, Any]]:
    """Path and arguments of a post."""
    body = dict(TAKERS[name])
    if "data" in body:
        body["data"] = {
            key: (io.BytesIO(value[0]), value[1]) if isinstance(value, tuple) else value
            for key, value in body["data"].items()
        }
    return name.split()[0], body


def watch(monkeypatch: pytest.MonkeyPatch, note: Callable[[str], None]) -> None:
    """Calls `note` before a body is read and whatever came in it is decoded."""
    for owner, name in ((Request, "get_data"), (Request, "_load_form_data"), (base64, "b64decode"), (Image, "open")):
        inner = getattr(owner, name)

        def noted(*args: Any, _inner: Any = inner, _name: str = name, **kwargs: Any) -> Any:
            note(_name)
            return _inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)


def test_every_route_that_takes_pictures_is_looked_at(app: Flask) -> None:
    taking = {rule.rule for rule, route in routes(app) if route.takes == "pictures"}
    assert taking == {sent(name)[0] for name in TAKERS}


@pytest.mark.parametrize("name", TAKERS)
def test_nothing_is_read_before_there_is_a_place(
    app: Flask, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """16 MiB of picture cost 50 to 150 ms of processor time: a full queue must not spend them."""
    path, body = sent(name)
    read: list[tuple[str, int]] = []

    def note(what: str) -> None:
        busy = ENCODERS - service_of(app).encoders._value
        if not engine.requests:  # once accepted, it has its places
            read.append((what, busy if path in WITHOUT_THE_ENGINE else engine.num_held))

    client = app.test_client()
    watch(monkeypatch, note)
    reply = client.post(path, **body)
    assert reply.status_code in (200, 202) or path.endswith("score"), reply.text  # this engine tells no likelihoods
    assert len(read) >= 1 and all(places == 1 for _, places in read), read
    assert engine.num_held == 0 and service_of(app).encoders._value == ENCODERS


@pytest.mark.parametrize("name", [name for name in TAKERS if name not in WITHOUT_THE_ENGINE])
@pytest.mark.parametrize("refusal", ["the queue", "the client's share"])
def test_a_full_queue_refuses_unread(
    make_app: MakeApp, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, name: str, refusal: str
) -> None:
    app = make_app(max_waiting_images=2, queue_share=0.5)
    path, body = sent(name)
    if refusal == "the queue":
        engine.submit_error = Overloaded("the queue is full", retry_after_s=5)
    else:
        engine.gate.clear()
        service = service_of(app)
        service.submitter(service.pool.first)(GenerationRequest.of("x", client="addr:127.0.0.1"))
    read: list[str] = []
    watch(monkeypatch, read.append)
    reply = app.test_client().post(path, **body)
    assert (reply.status_code, reply.headers["Retry-After"]) == (503 if refusal == "the queue" else 429, "5")
    assert read == []
    engine.gate.set()


@pytest.mark.parametrize("name", [name for name in TAKERS if name not in WITHOUT_THE_ENGINE])
def test_a_place_comes_back_from_a_request_that_is_wrong(app: Flask, engine: ScriptedEngine, name: str) -> None:
    path, body = sent(name)
    kind = "json" if "json" in body else "data"
    wrong = {"negative_prompt": "x" * 40_000, "previous_response_id": "x"}  # each route minds one of them
    reply = app.test_client().post(path, **{kind: body[kind] | wrong})
    assert (reply.status_code, engine.num_held) == (400, 0)
