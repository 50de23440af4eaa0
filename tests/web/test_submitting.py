"""A request that is made of parts is one request: for the queue, for its client's share of it, and in the books."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from numpy.typing import NDArray
from PIL import Image

from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.errors import Overloaded, RateLimited
from dalle_server.request import GenerationRequest
from dalle_server.web.app import create_app
from dalle_server.web.bookkeeping import Bookkeeping, Parts
from dalle_server.web.jobs.current import EXTENSION
from dalle_server.web.operations.metrics import Metrics
from dalle_server.web.service import Service
from tests.fake_runner import FakeRunner, FakeTokenizer, fake_config
from tests.web.jobs.client import wait_for
from tests.web.waits import until

Json = dict[str, Any]
SLOTS, WAITING = 4, 5


def url(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


PHOTO = url(np.full((32, 32, 3), 90, np.uint8))
MASK = url(np.repeat(np.array([255, 0], np.uint8), 16)[:, None].repeat(32, 1))  # the upper half is painted anew


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Flask]]:
    """start(step_s, **settings) → an application on a real engine without weights."""
    apps: list[Flask] = []

    def make(step_s: float = 0.0, **settings_kw: Any) -> Flask:
        def load() -> Engine:
            runner = FakeRunner(fake_config(grid_side=4), num_slots=SLOTS, step_s=step_s)
            books = service.bookkeeping
            engine = Engine(runner, FakeTokenizer(), max_waiting_images=settings.max_waiting_images, observer=books)
            engine.start()
            return engine

        paths = {"output_dir": tmp_path / "generations", "data_dir": tmp_path / "data"}
        settings = Settings(**{"max_waiting_images": WAITING, **paths, **settings_kw})
        service = Service(settings, load=load)
        service.start_loading()
        assert service.wait_until_loaded(30)
        apps.append(create_app(service.settings, service))
        return apps[-1]

    yield make
    for app in apps:
        app.extensions[EXTENSION].close()
        app.extensions["dalle_server"].stop()


def counted(app: Flask, outcome: str) -> float:
    return value(app, f'dalle_requests_total{{outcome="{outcome}"}}')


def value(app: Flask, name: str) -> float:
    lines = app.test_client().get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).rpartition(" ")[2])


EDIT = {"prompt": "x", "images": [{"image_url": PHOTO}], "mask": {"image_url": MASK}, "response_format": "b64_json"}
PARTS = [
    ("/v1/images/edits", {**EDIT, "n": 3, "candidates": 2}),
    ("/v1/images/generations", {"prompt": "x", "n": 3, "size": "96x32", "response_format": "b64_json"}),
]
TOO_MANY = [
    ("/v1/images/edits", {**EDIT, "n": 4, "candidates": 4}, "candidates × n must be at most 9 on this server"),
    ("/v1/images/generations", {"prompt": "x", "n": 10, "size": "96x32"}, "must be at most 9 on this server"),
]


@pytest.mark.parametrize(("path", "body"), PARTS)
def test_its_parts_are_no_others_in_its_clients_share(start: Callable[..., Flask], path: str, body: Json) -> None:
    app = start(queue_share=0.1)  # one picture; whoever has nothing under way may have more
    reply = app.test_client().post(path, json=body)
    assert reply.status_code == 200, reply.json
    assert len(reply.json["data"]) == 3


@pytest.mark.parametrize(("path", "body"), PARTS)
def test_it_is_counted_once(start: Callable[..., Flask], path: str, body: Json) -> None:
    app = start()
    assert app.test_client().post(path, json=body).status_code == 200
    until(lambda: counted(app, "done") == 1)
    assert value(app, "dalle_request_seconds_count") == value(app, "dalle_queue_seconds_count") == 1
    assert counted(app, "cancelled") == counted(app, "refused") == 0


def test_one_that_is_refused_in_the_middle_is_refused_once(start: Callable[..., Flask]) -> None:
    app = start()
    engine = app.extensions["dalle_server"].pool.first.engine
    with engine._loop.tracker._changed:
        engine._loop.tracker._held = SLOTS + WAITING - 3  # others are being read
    reply = app.test_client().post("/v1/images/edits", json={**EDIT, "n": 3, "candidates": 2})
    assert reply.status_code == 503
    until(lambda: engine.stats().live_requests == 0)
    assert (counted(app, "refused"), counted(app, "cancelled"), counted(app, "done")) == (1, 0, 0)


@pytest.mark.parametrize(("path", "body", "said"), TOO_MANY)
def test_one_that_never_finds_room_is_told_so(start: Callable[..., Flask], path: str, body: Json, said: str) -> None:
    reply = start(max_images=16).test_client().post(path, json=body)
    assert reply.status_code == 400 and said in reply.json["error"]["message"]


@pytest.mark.parametrize(("path", "body", "said"), TOO_MANY)
def test_one_that_finds_room_when_all_replicas_are_there_is_not_wrong(
    start: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch, path: str, body: Json, said: str
) -> None:
    app = start(max_images=16)
    monkeypatch.setattr(Engine, "most_images", 100)  # as of a cluster's front, which has fewer slots just now
    assert app.test_client().post(path, json=body).status_code == 503


def test_a_job_that_never_finds_room_any_more_ends(start: Callable[..., Flask]) -> None:
    app = start(step_s=1.0)
    body = {"prompt": "x", "image": PHOTO, "mask": MASK, "num_images": 2, "candidates": 4}
    job = app.test_client().post("/v1/jobs", json=body).json
    app.extensions[EXTENSION].close()  # unfinished, as a kill leaves it
    smaller = start(max_waiting_images=3)
    smaller.extensions[EXTENSION].start()
    failed = wait_for(smaller.test_client(), job["id"], "failed")
    assert "candidates × n must be at most 7 on this server" in failed["error"]["message"]


def test_a_refused_request_gives_its_place_back(start: Callable[..., Flask]) -> None:
    app = start(max_images=16)
    engine = app.extensions["dalle_server"].pool.first.engine
    for _ in range(3):
        reply = app.test_client().post("/sdapi/v1/txt2img", json={"prompt": "x", "batch_size": 13})
        assert reply.status_code == 400, reply.json
    assert engine._loop.tracker._held == 0


def test_a_job_that_waits_for_room_is_not_refused(start: Callable[..., Flask]) -> None:
    app = start(step_s=1.0)
    job = app.test_client().post("/v1/jobs", json={"prompt": "x"}).json
    app.extensions[EXTENSION].close()
    again = start()
    engine = again.extensions["dalle_server"].pool.first.engine
    with engine._loop.tracker._changed:
        engine._loop.tracker._held = SLOTS + WAITING
    jobs = again.extensions[EXTENSION]
    jobs.start()
    for _ in range(3):
        jobs._backlog.admit(jobs.store)
    assert jobs.local_ids() == {job["id"]}
    with engine._loop.tracker._changed:
        engine._loop.tracker._held = 0
    wait_for(again.test_client(), job["id"], "done")
    assert counted(again, "refused") == 0


# -- one client's share


def books() -> Bookkeeping:
    """In which a share is one picture."""
    return Bookkeeping(Settings(queue_share=0.1, max_waiting_images=10), Metrics(), lambda: "a model")


def test_what_the_engine_refuses_takes_no_share() -> None:
    kept = books()
    with pytest.raises(Overloaded), kept.submitting(GenerationRequest.of("x", client="a"), Parts()):
        raise Overloaded("the queue is full")
    with kept.holding("a"):
        pass


def test_who_has_nothing_under_way_may_ask_for_more_than_a_share() -> None:
    kept = books()
    with kept.submitting(GenerationRequest.of("x", 4, client="a"), Parts()):
        pass
    with pytest.raises(RateLimited), kept.holding("a"):
        pass
