"""/v1/jobs over HTTP: what is accepted, what is refused, and what the gallery shows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.errors import (
    NotReady,
    Overloaded,
    StorageError,
)
from dalle_server.generation import Progress, Queued, Started
from dalle_server.pictures.metadata import read_metadata
from dalle_server.web.jobs.current import EXTENSION
from tests.web.jobs.client import submit, wait_for
from tests.web.scripted_engine import ScriptedEngine
from tests.web.waits import until


def test_a_job_is_accepted_runs_and_shows_its_pictures(client: FlaskClient) -> None:
    submitted = submit(client, num_images=2)
    assert submitted["status"] in ("queued", "running", "done")  # this engine starts at once
    assert submitted["position"] in (0, None)
    assert (submitted["top_k"], submitted["condition_scale"]) == (50, 10.0)  # the checkpoint's own, resolved
    done = wait_for(client, submitted["id"], "done")
    assert [(image["index"], image["seed"], image["width_px"]) for image in done["images"]] == [(0, 7, 16), (1, 7, 16)]
    picture = client.get(done["images"][1]["url"])
    assert picture.mimetype == "image/png"
    assert "immutable" in picture.headers["Cache-Control"]
    recipe = read_metadata(picture.data)
    assert (recipe.prompt, recipe.seed, recipe.image_index) == ("a red apple", 7, 1)


def test_a_job_that_runs_has_nothing_ahead_of_it(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    job = wait_for(client, submit(client)["id"], "running")
    for event in (Queued(2), Started(0.1), Progress(9, 16, 0.5)):
        engine.generations[0].emit(event)
    until(lambda: client.get(f"/v1/jobs/{job['id']}").json["tokens_done"] == 9)
    shown = client.get(f"/v1/jobs/{job['id']}").json
    assert (shown["position"], shown["num_tokens"], shown["eta_s"]) == (0, 16, 0.5)
    engine.gate.set()
    assert wait_for(client, job["id"], "done")["position"] is None


@pytest.mark.parametrize(("format", "head"), [("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_pictures_come_in_the_format_asked_for(client: FlaskClient, format: str, head: bytes) -> None:
    done = wait_for(client, submit(client, format=format)["id"], "done")
    picture = client.get(done["images"][0]["url"])
    assert picture.mimetype == f"image/{format}"
    assert picture.data.startswith(head)


def test_pictures_are_found_in_a_relative_data_dir(
    make_app: Callable[..., Flask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_app(data_dir=Path("here"))
    client = app.test_client()
    job = wait_for(client, submit(client)["id"], "done")
    assert client.get(job["images"][0]["url"]).status_code == 200
    app.extensions[EXTENSION].close()


def test_a_drawn_seed_is_fixed_at_submission(client: FlaskClient, engine: ScriptedEngine) -> None:
    job = submit(client, seed=None)
    assert job["seed"] == engine.requests[0].images[0].seed


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", "  "), ("num_images", 0), ("num_images", 5), ("num_images", "3"), ("seed", -1), ("seed", 2**64),
     ("top_p", 0), ("temperature", 1e9), ("format", "gif"), ("preview", "yes"), ("prompt", None)],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(client: FlaskClient, field: str, value: Any) -> None:
    response = client.post("/v1/jobs", json={"prompt": "a red apple", field: value})
    assert response.status_code == 400
    assert response.json["error"]["param"] == field
    assert client.get("/v1/jobs").json["data"] == []


@pytest.mark.parametrize(
    "error", [Overloaded("the queue is full", retry_after_s=3), NotReady("loading", retry_after_s=3)]
)
def test_a_full_queue_refuses_at_once(client: FlaskClient, engine: ScriptedEngine, error: Overloaded) -> None:
    engine.submit_error = error
    response = client.post("/v1/jobs", json={"prompt": "a red apple"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "3")
    assert client.get("/v1/jobs").json["data"] == []


def test_the_gallery_pages_and_searches(client: FlaskClient) -> None:
    ids = [submit(client, prompt=f"picture number{number}")["id"] for number in range(3)]
    for job_id in ids:
        wait_for(client, job_id, "done")
    page = client.get("/v1/jobs?limit=2&with_pictures=true").json
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    rest = client.get(f"/v1/jobs?limit=2&after={page['data'][-1]['id']}").json
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[:1], False)
    assert [job["id"] for job in client.get("/v1/jobs?q=number1").json["data"]] == ids[1:2]
    assert client.get("/v1/jobs?limit=0").json["error"]["param"] == "limit"
    assert client.delete(f"/v1/jobs/{ids[1]}").status_code == 200
    gone = client.get(f"/v1/jobs?after={ids[1]}")
    assert (gone.status_code, gone.json["error"]["param"]) == (404, "after"), "and not as if there were no more"


def test_jobs_of_one_key_are_not_anothers(make_app: Callable[..., Flask]) -> None:
    app = make_app(api_keys=("me:" + "k" * 20, "you:" + "l" * 20))
    mine, other = (app.test_client() for _ in range(2))
    mine.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {'k' * 20}"
    other.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {'l' * 20}"
    done = wait_for(mine, submit(mine)["id"], "done")
    for path in (f"/v1/jobs/{done['id']}", f"/v1/jobs/{done['id']}/events", done["images"][0]["url"]):
        assert other.get(path).status_code == 404
        assert mine.get(path).status_code == 200
    assert other.delete(f"/v1/jobs/{done['id']}").status_code == 404
    assert other.get("/v1/jobs").json["data"] == []
    assert len(mine.get("/v1/jobs").json["data"]) == 1
    app.extensions[EXTENSION].close()


def test_no_log_tells_a_prompt(
    make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not at debug level, and not where a statement fails."""
    caplog.set_level(logging.DEBUG)
    wish = "my secret wish"  # not written where it is used: a traceback shows lines of this file
    app = make_app()
    client = app.test_client()
    wait_for(client, submit(client, prompt=wish)["id"], "done")
    client.get("/v1/jobs", query_string={"q": wish}).close()
    store = app.extensions[EXTENSION].store
    with pytest.raises(StorageError) as failed, store.rows.database.writing() as connection:
        connection.execute(sa.text("INSERT INTO nowhere VALUES (:prompt)"), {"prompt": wish})
    logging.getLogger("test").exception("jobs", exc_info=failed.value)
    assert "nowhere" in caplog.text
    assert wish not in caplog.text
    app.extensions[EXTENSION].close()


def test_what_is_null_or_an_empty_field_of_a_form_is_left_out(client: FlaskClient) -> None:
    unset = dict.fromkeys(("num_images", "format", "preview", "seamless", "seed", "best_of", "size", "image", "mask"))
    job = client.post("/v1/jobs", json={"prompt": "x", **unset})
    assert (job.status_code, job.json["num_images"], job.json["format"], job.json["preview"]) == (202, 1, "png", True)
    form = {"prompt": "x", "num_images": "2", "seed": "", "best_of": "", "format": "", "negative_prompt": ""}
    job = client.post("/v1/jobs", data=form, content_type="multipart/form-data")
    assert (job.status_code, job.json["num_images"], job.json["format"]) == (202, 2, "png")
    refused = client.post("/v1/jobs", json={"prompt": "x", "num_images": ""})
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "num_images")
