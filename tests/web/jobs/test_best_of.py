"""Jobs of the likeliest of many pictures: the same as of a generation, through cancels, restarts and repairs."""

from __future__ import annotations

import base64
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.engine.engine import Engine
from dalle_server.errors import NotReady
from dalle_server.web.jobs.current import EXTENSION
from dalle_server.web.jobs.storage.records import JobPicture, from_values, to_values
from dalle_server.web.jobs.storage.store import Store
from tests.fake_runner import FakeRunner, FakeTokenizer, fake_config
from tests.web.jobs.client import Viewer, submit, wait_for
from tests.web.jobs.store_help import job

Json = dict[str, Any]
CHOSEN: Json = {"num_images": 2, "best_of": 6}
MAX_WAITING = 8


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner(fake_config(4), num_slots=4)


@pytest.fixture
def engine(runner: FakeRunner) -> Iterator[Engine]:
    engine = Engine(runner, FakeTokenizer(), digest="d" * 64, max_waiting_images=MAX_WAITING, progress_every_s=0.001)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def start(make_app: Callable[..., Flask]) -> Iterator[Callable[[], Flask]]:
    """A server on the same data_dir as the one before."""
    apps: list[Flask] = []

    def start() -> Flask:
        for app in apps:
            app.extensions[EXTENSION].close()
        apps.append(make_app(max_images=8))
        apps[-1].extensions[EXTENSION].start()
        return apps[-1]

    yield start
    apps[-1].extensions[EXTENSION].close()


@pytest.fixture
def app(start: Callable[[], Flask]) -> Flask:
    return start()


def generated(client: FlaskClient, **fields: Any) -> list[Json]:
    """What a generation answers for the same fields."""
    body = {"prompt": "a red apple", "seed": 7, "n": 2, "best_of": 6, "response_format": "b64_json", **fields}
    response = client.post("/v1/images/generations", json=body)
    assert response.status_code == 200, response.json
    return list(response.json["data"])


def check_same(client: FlaskClient, done: Json, data: list[Json]) -> None:
    assert [image["index"] for image in done["images"]] == list(range(len(data)))
    for image, other in zip(done["images"], data, strict=True):
        assert {name: image[name] for name in ("image_index", "score", "seed")} == {
            name: other[name] for name in ("image_index", "score", "seed")
        }
        assert client.get(image["url"]).data == base64.b64decode(other["b64_json"])


def store_of(app: Flask) -> Store:
    store: Store = app.extensions[EXTENSION].store
    return store


def held(runner: FakeRunner) -> threading.Event:
    """Nothing is drawn before it is set."""
    go = threading.Event()

    def wait(rows: object) -> None:
        go.wait(10)

    runner.on_step = wait
    return go


@pytest.mark.parametrize("fields", [{}, {"size": "96x32"}, {"size": "64x64", "fit": "crop"}, {"seamless": True}])
def test_they_are_those_of_a_generation_best_first(client: FlaskClient, fields: Json) -> None:
    done = wait_for(client, submit(client, **CHOSEN, **fields)["id"], "done")
    data = generated(client, **fields)
    assert [each["image_index"] for each in data] != [0, 1], "a choice that shows"
    assert (done["num_images"], done["best_of"]) == (2, 6)
    check_same(client, done, data)


def test_other_jobs_choose_nothing(client: FlaskClient) -> None:
    done = wait_for(client, submit(client, num_images=2)["id"], "done")
    assert done["best_of"] is None
    assert [(image["index"], image["image_index"], image["score"]) for image in done["images"]] == [
        (0, 0, None),
        (1, 1, None),
    ]


def test_progress_is_of_all_and_pictures_come_when_the_choice_is_made(client: FlaskClient, runner: FakeRunner) -> None:
    go = held(runner)
    made = submit(client, **CHOSEN)
    viewer = Viewer(client, f"/v1/jobs/{made['id']}/events")
    go.set()
    names = viewer.read_until("done")
    assert "preview" not in names and names[-3:] == ["image", "image", "done"]
    told = [data for _, name, data in viewer.seen if name == "progress"]
    assert {data["num_tokens"] for data in told} == {6 * 16}
    images = [{**data} for _, name, data in viewer.seen if name == "image"]
    assert [data["index"] for data in images] == [0, 1] and images[0]["score"] > images[1]["score"]


def test_a_cancel_leaves_no_picture(client: FlaskClient, runner: FakeRunner) -> None:
    go = held(runner)
    made = submit(client, **CHOSEN)
    assert client.post(f"/v1/jobs/{made['id']}/cancel").status_code == 200
    go.set()
    assert wait_for(client, made["id"], "cancelled")["images"] == []


def test_what_is_drawn_counts_for_the_queue(client: FlaskClient, runner: FakeRunner) -> None:
    go = held(runner)
    made = submit(client, num_images=1, best_of=8)["id"]
    refused = client.post("/v1/jobs", json={"prompt": "x", "best_of": 8})  # eight wait already, or are being drawn
    go.set()
    assert refused.status_code in (429, 503)
    assert len(client.get("/v1/jobs").json["data"]) == 1, "nothing is kept of what was refused"
    wait_for(client, made, "done")


@pytest.mark.parametrize("fields", [CHOSEN, {"num_images": 2, "size": "96x32"}])
def test_a_database_that_is_away_as_pictures_come_loses_none(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, fields: Json
) -> None:
    """What several generations have said at once is told one by one."""
    expected = wait_for(client, submit(client, **fields)["id"], "done")["images"]
    store, refused = store_of(app), list[int]()
    add = store.add_picture

    def away_at_first(job: Any, index: int, *rest: Any, **chosen: Any) -> JobPicture:
        if index not in refused:
            refused.append(index)
            raise NotReady("the database is away")
        return add(job, index, *rest, **chosen)

    monkeypatch.setattr(store, "add_picture", away_at_first)
    done = wait_for(client, submit(client, **fields)["id"], "done", timeout_s=10)
    assert sorted(refused) == [0, 1]
    assert [{**image, "url": ""} for image in done["images"]] == [{**image, "url": ""} for image in expected]


@pytest.mark.parametrize("stored", [0, 1])
def test_a_restart_draws_all_again_and_ends_alike(
    start: Callable[[], Flask], monkeypatch: pytest.MonkeyPatch, stored: int
) -> None:
    first = start()
    client, store = first.test_client(), store_of(first)
    add, tried = store.add_picture, threading.Event()

    def away(job: Any, index: int, *rest: Any, **chosen: Any) -> JobPicture:
        if index >= stored:
            tried.set()
            raise NotReady("the database is away")
        return add(job, index, *rest, **chosen)

    monkeypatch.setattr(store, "add_picture", away)
    made = submit(client, **CHOSEN)
    assert tried.wait(30)
    second = start().test_client()
    check_same(second, wait_for(second, made["id"], "done"), generated(second))


def test_a_kill_between_a_file_and_its_row(start: Callable[[], Flask], tmp_path: Path) -> None:
    """The file tells which noise it was, but not how likely it is: the choice is made once more."""
    first = start().test_client()
    made = wait_for(first, submit(first, **CHOSEN)["id"], "done")
    start_from(tmp_path, start, "UPDATE jobs SET status = 'running'", "DELETE FROM pictures WHERE image_index = 1")
    second = start().test_client()
    done = wait_for(second, made["id"], "done")
    assert done["images"] == made["images"]


def test_all_stored_is_done(start: Callable[[], Flask], tmp_path: Path, engine: Engine) -> None:
    first = start().test_client()
    made = wait_for(first, submit(first, **CHOSEN)["id"], "done")
    start_from(tmp_path, start, "UPDATE jobs SET status = 'running'")
    drawn = engine.stats().images
    second = start().test_client()
    assert wait_for(second, made["id"], "done")["images"] == made["images"]
    assert engine.stats().images == drawn


@pytest.mark.parametrize("lost", ["database", "row", "request"])
def test_what_was_lost_is_made_again_from_the_files(start: Callable[[], Flask], tmp_path: Path, lost: str) -> None:
    first = start().test_client()
    made = wait_for(first, submit(first, **CHOSEN)["id"], "done")
    statements = {"row": ["DELETE FROM pictures", "DELETE FROM jobs"], "request": ["UPDATE jobs SET request = '{'"]}
    start_from(tmp_path, start, *statements.get(lost, []))
    if lost == "database":
        (tmp_path / "data" / "jobs.sqlite3").unlink()
    second = start().test_client()
    again = second.get(f"/v1/jobs/{made['id']}").json
    assert (again["status"], again["best_of"], again["num_images"]) == ("done", 6, 2)
    assert not (tmp_path / "data" / "set-aside").exists()
    for image, before in zip(again["images"], made["images"], strict=True):
        assert image == {**before, "score": before["score"] if lost == "request" else None}


def start_from(tmp_path: Path, start: Callable[[], Flask], *statements: str) -> None:
    """Change the database of a server that is closed for it."""
    app = start()
    app.extensions[EXTENSION].close()
    connection = sqlite3.connect(tmp_path / "data" / "jobs.sqlite3")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_images": 3, "best_of": 2}, "between num_images, 3, and 8, not 2"),
        ({"best_of": 9}, "between num_images, 1, and 8, not 9"),
        ({"best_of": 0}, ""),
        ({"best_of": 4, "image": "eHh4"}, "use candidates"),
    ],
)
def test_what_is_wrong_is_named(client: FlaskClient, fields: Json, said: str) -> None:
    response = client.post("/v1/jobs", json={"prompt": "x", **fields})
    assert (response.status_code, response.json["error"]["param"]) == (400, "best_of")
    assert said in response.json["error"]["message"]
    assert client.get("/v1/jobs").json["data"] == []


def test_a_form_has_it_too(client: FlaskClient) -> None:
    response = client.post("/v1/jobs", data={"prompt": "x", "best_of": "3"}, content_type="multipart/form-data")
    assert (response.status_code, response.json["best_of"]) == (202, 3)


def test_a_model_that_tells_no_likelihood_refuses_as_elsewhere(
    client: FlaskClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "info", replace(engine.info, features=()))
    answers = [client.post(path, json={"prompt": "x", "best_of": 3}) for path in ("/v1/jobs", "/v1/images/generations")]
    assert answers[0].status_code == answers[1].status_code == 501
    assert answers[0].json == answers[1].json
    assert client.get("/v1/jobs").json["data"] == []


@pytest.mark.parametrize("value", [1, 10**6, "x", 2.5])
def test_a_number_that_cannot_be_costs_that_job_alone(value: object) -> None:
    absent = ("started_at", "finished_at", "queue_s", "total_s")
    row = {**to_values(replace(job(1), best_of=6)), **dict.fromkeys(absent), "faults": 0, "last_event": 0}
    assert from_values(row).best_of == 6
    assert from_values({**row, "best_of": None}).best_of is None
    damaged = from_values({**row, "best_of": value})
    assert damaged.is_damaged and damaged.status == "failed"


def test_previews_that_nobody_gets_are_not_painted(client: FlaskClient, engine: Engine) -> None:
    generated(client, stream=False)
    body = {"prompt": "a red apple", "seed": 7, "n": 2, "best_of": 6, "stream": True, "partial_images": 3}
    assert "partial_image" not in client.post("/v1/images/generations", json=body).text
    assert engine.stats().previews == 0
