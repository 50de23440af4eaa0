"""/v1/jobs over HTTP: what a client sees of a job from its submission to its end, and after a restart."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.errors import (
    DalleServerError,
    GenerationFailed,
    NotReady,
    Overloaded,
    RateLimited,
    StorageError,
)
from dalle_server.pictures.metadata import read_metadata
from dalle_server.web.jobs import ends as jobs_ends
from dalle_server.web.jobs.current import EXTENSION
from dalle_server.web.jobs.storage.records import Job
from tests.web.jobs.store_help import picture_bytes
from tests.web.scripted_engine import ScriptedEngine

Json = dict[str, Any]


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    app = make_app(max_images=4)
    yield app
    app.extensions[EXTENSION].close()


def submit(client: FlaskClient, **fields: Any) -> Json:
    with client.post("/v1/jobs", json={"prompt": "a red apple", "seed": 7, **fields}) as response:
        assert response.status_code == 202, response.json
        assert response.headers["Location"] == f"/v1/jobs/{response.json['id']}"
        return dict(response.json)  # type: ignore[arg-type]


def wait_for(client: FlaskClient, job_id: str, status: str, timeout_s: float = 30) -> Json:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with client.get(f"/v1/jobs/{job_id}") as response:  # closed: an open answer counts as a request in flight
            found = dict(response.json)  # type: ignore[arg-type]
        if found["status"] == status:
            return found
        time.sleep(0.01)
    raise AssertionError(f"still {found['status']}, not {status}")


def events(text: str) -> list[tuple[int, str, Json]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


class Viewer:
    """Reads an event stream step by step."""

    def __init__(self, client: FlaskClient, path: str, after: int = 0):
        self.response = client.get(path, headers={"Last-Event-ID": str(after)})
        self._chunks = iter(self.response.response)
        self.seen: list[tuple[int, str, Json]] = []

    def read_until(self, *names: str) -> list[str]:
        for chunk in self._chunks:
            self.seen += events(chunk.decode() if isinstance(chunk, bytes) else chunk)  # type: ignore[arg-type]
            if self.seen and self.seen[-1][1] in names:
                break
        return [name for _, name, _ in self.seen]


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


def test_the_events_of_a_job_in_order(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    job = submit(client)
    viewer = Viewer(client, f"/v1/jobs/{job['id']}/events")
    assert viewer.read_until("progress") == ["queued", "started", "progress"]
    engine.gate.set()
    assert viewer.read_until("done")[-1] == "done"
    numbers = [number for number, _, _ in viewer.seen]
    assert numbers == sorted(set(numbers))
    image, done = viewer.seen[-2][2], viewer.seen[-1][2]
    assert image == {"job": job["id"], **done["images"][0]}
    assert client.get(image["url"]).status_code == 200


def test_a_viewer_goes_on_from_its_last_event(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    path = f"/v1/jobs/{submit(client)['id']}/events"
    first = Viewer(client, path)
    first.read_until("progress")
    first.response.close()
    engine.gate.set()
    again = Viewer(client, path, after=first.seen[-1][0])
    names = again.read_until("done")
    assert "queued" not in names
    assert "started" not in names
    assert names[-1] == "done"


def test_the_events_of_a_job_that_ended_are_told_again(client: FlaskClient, app: Flask) -> None:
    job = submit(client, num_images=2)
    wait_for(client, job["id"], "done")
    names = [name for _, name, _ in events(client.get(f"/v1/jobs/{job['id']}/events").text)]
    assert names == ["image", "image", "done"]


def test_several_viewers_see_the_same_job(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    path = f"/v1/jobs/{submit(client)['id']}/events"
    viewers = [Viewer(client, path), Viewer(client, path), Viewer(client, "/v1/jobs/events")]
    for viewer in viewers:
        viewer.read_until("progress")
    engine.gate.set()
    for viewer in viewers:
        assert viewer.read_until("done")[-2:] == ["image", "done"]


def test_one_stream_watches_all_running_jobs(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    jobs = [submit(client)["id"], submit(client)["id"]]
    viewer = Viewer(client, "/v1/jobs/events")
    viewer.read_until("progress")
    engine.gate.set()
    ended: set[str] = set()
    while len(ended) < 2:
        viewer.read_until("done")
        ended = {data["job"] for _, name, data in viewer.seen if name == "done"}
    assert ended == set(jobs)
    viewer.response.close()


def test_previews_are_made_only_while_somebody_looks(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    job, silent = submit(client), submit(client, preview=False)
    wait_for(client, job["id"], "running")
    generation, without = engine.generations
    assert generation.preview_every == 0
    viewer, other = (Viewer(client, f"/v1/jobs/{each['id']}/events") for each in (job, silent))
    until(lambda: generation.preview_every == 4)  # one for each row of the 4 × 4 grid
    assert without.preview_every == 0
    viewer.response.close()
    other.response.close()
    until(lambda: generation.preview_every == 0)


def test_a_preview_is_a_picture_in_the_event(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    job = submit(client)
    viewer = Viewer(client, f"/v1/jobs/{job['id']}/events")
    until(lambda: engine.generations[0].preview_every > 0)
    feed = client.application.extensions[EXTENSION].feed
    published: list[Json] = []
    publish = feed.publish
    feed.publish = lambda job_id, event, data: (
        published.append({"event": event, **data}),
        publish(job_id, event, data),
    )
    engine.gate.set()
    viewer.read_until("done")
    previews = [data for data in published if data["event"] == "preview"]
    assert [data["tokens_done"] for data in previews] == [4, 8, 12]
    assert all(data["image"].startswith("data:image/jpeg;base64,") for data in previews)


def test_too_many_viewers_are_told_to_poll(make_app: Callable[..., Flask], engine: ScriptedEngine) -> None:
    engine.gate.clear()
    app = make_app(max_event_streams=1)
    client = app.test_client()
    viewer = Viewer(client, "/v1/jobs/events")
    refused = client.get("/v1/jobs/events")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    viewer.response.close()
    assert client.get("/v1/jobs/events").status_code == 200
    app.extensions[EXTENSION].close()


def test_a_cancel_ends_the_job_and_keeps_its_row(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    job = submit(client)
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 202
    cancelled = wait_for(client, job["id"], "cancelled")
    assert cancelled["images"] == []
    assert client.delete(f"/v1/jobs/{job['id']}").json == {"id": job["id"], "object": "job.deleted", "deleted": True}
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_a_cancel_that_comes_with_the_row_is_not_lost(
    app: Flask, client: FlaskClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another window sees the job in the list before its submission has been answered."""
    engine.gate.clear()
    store = app.extensions[EXTENSION].store
    add, threads = store.add, list[threading.Thread]()

    def add_and_be_seen(job: Job) -> None:
        add(job)
        threads.append(threading.Thread(target=app.test_client().delete, args=(f"/v1/jobs/{job.id}",)))
        threads[0].start()
        threads[0].join(0.2)

    monkeypatch.setattr(store, "add", add_and_be_seen)
    job = submit(client)
    threads[0].join()
    wait_for(client, job["id"], "cancelled", timeout_s=5)


def test_deleting_a_finished_job_deletes_its_pictures(client: FlaskClient, tmp_path: Path) -> None:
    done = wait_for(client, submit(client)["id"], "done")
    client.delete(f"/v1/jobs/{done['id']}")
    assert client.get(done["images"][0]["url"]).status_code == 404
    assert not [path for path in (tmp_path / "data" / "jobs").rglob("*") if path.is_file()]


def test_a_failure_is_told_with_its_reason(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.fail_with = GenerationFailed("the logits were not finite")
    job = submit(client)
    assert wait_for(client, job["id"], "failed")["error"]["message"] == "the logits were not finite"
    last = events(client.get(f"/v1/jobs/{job['id']}/events").text)[-1]
    assert last[1:] == ("failed", {"job": job["id"], "error": wait_for(client, job["id"], "failed")["error"]})


def test_a_disk_that_refuses_fails_the_job_and_stops_the_engine(
    client: FlaskClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dalle_server.web.jobs.storage.files.write_whole", refuse)
    job = submit(client)
    failed = wait_for(client, job["id"], "failed")
    assert failed["error"]["code"] == "storage_error"
    assert "free some space" in failed["error"]["message"]


def test_a_disk_that_refuses_the_end_as_well_costs_no_later_job(
    client: FlaskClient, app: Flask, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk not even "failed" can be written: it is told from memory, and written when there is room."""
    store = app.extensions[EXTENSION].store
    update = store.rows.update

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("the disk is full; free some space")

    def refuse_ends(job_id: str, **values: Any) -> None:
        if "finished_at" in values:
            refuse()
        update(job_id, **values)

    monkeypatch.setattr(jobs_ends, "RECORD_AGAIN_S", 0.05)
    monkeypatch.setattr(store, "add_picture", refuse)
    monkeypatch.setattr(store.rows, "update", refuse_ends)
    job = submit(client)
    failed = wait_for(client, job["id"], "failed")
    assert failed["error"]["code"] == "storage_error" and failed["finished_at"]
    assert client.get("/v1/jobs").json["data"][0]["status"] == "failed"
    assert events(client.get(f"/v1/jobs/{job['id']}/events").text)[-1][1] == "failed"
    assert store.rows.get(job["id"]).status == "running"
    monkeypatch.undo()
    wait_for(client, submit(client)["id"], "done")
    until(lambda: store.rows.get(job["id"]).status == "failed")


@pytest.mark.parametrize("last", ["9" * 5000, "9" * 20, "-1", "\u0663", "1e9", "x"])
def test_a_strange_last_event_id_is_no_id(client: FlaskClient, last: str) -> None:
    done = wait_for(client, submit(client)["id"], "done")
    headers = {"Last-Event-ID": last.encode().decode("latin-1")}
    assert client.get(f"/v1/jobs/{done['id']}/events", headers=headers).status_code == 200
    view = client.get("/v1/jobs/events", headers=headers)
    assert view.status_code == 200
    view.close()


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


def test_a_restart_goes_on_and_makes_the_same_bytes(
    make_app: Callable[..., Flask], engine: ScriptedEngine, tmp_path: Path
) -> None:
    alone = make_app(data_dir=tmp_path / "alone")
    expected = pictures(alone.test_client(), num_images=3)
    alone.extensions[EXTENSION].close()
    engine.gate.clear()
    first = make_app()
    job = submit(first.test_client(), num_images=3)
    wait_for(first.test_client(), job["id"], "running")
    first.extensions[EXTENSION].close()  # as a kill does: the job is not ended, its row says running
    engine.gate.set()
    second = make_app()
    second.extensions[EXTENSION].start()
    done = wait_for(second.test_client(), job["id"], "done")
    assert [second.test_client().get(image["url"]).data for image in done["images"]] == expected
    second.extensions[EXTENSION].close()


def pictures(client: FlaskClient, **fields: Any) -> list[bytes]:
    done = wait_for(client, submit(client, **fields)["id"], "done")
    return [client.get(image["url"]).data for image in done["images"]]


def test_a_restart_makes_only_the_missing_pictures(make_app: Callable[..., Flask], engine: ScriptedEngine) -> None:
    engine.gate.clear()
    first = make_app()
    job = submit(first.test_client(), num_images=3)
    wait_for(first.test_client(), job["id"], "running")
    store = first.extensions[EXTENSION].store
    row = store.rows.get(job["id"])
    kept = picture_bytes(row, 1)
    store.add_picture(row, 1, kept, (8, 8))
    first.extensions[EXTENSION].close()
    engine.gate.set()
    second = make_app()
    second.extensions[EXTENSION].start()
    done = wait_for(second.test_client(), job["id"], "done")
    assert [key.index for key in engine.requests[-1].images] == [0, 2]
    assert second.test_client().get(done["images"][1]["url"]).data == kept
    second.extensions[EXTENSION].close()


def test_a_job_for_other_weights_is_not_mixed(make_app: Callable[..., Flask], engine: ScriptedEngine) -> None:
    engine.gate.clear()
    first = make_app()
    job = submit(first.test_client())
    first.extensions[EXTENSION].close()
    engine.digest = "f" * 64
    second = make_app()
    second.extensions[EXTENSION].start()
    failed = wait_for(second.test_client(), job["id"], "failed")
    assert "other weights" in failed["error"]["message"]
    second.extensions[EXTENSION].close()


@pytest.mark.parametrize("refusal", [Overloaded("full"), RateLimited("your share of the queue is full")])
def test_a_backlog_waits_for_room_and_can_be_cancelled(
    make_app: Callable[..., Flask], engine: ScriptedEngine, refusal: DalleServerError
) -> None:
    engine.gate.clear()
    first = make_app()
    jobs = [submit(first.test_client())["id"] for _ in range(2)]
    first.extensions[EXTENSION].close()
    engine.submit_error = refusal
    second = make_app()
    client = second.test_client()
    second.extensions[EXTENSION].start()
    assert client.delete(f"/v1/jobs/{jobs[0]}").status_code == 202
    wait_for(client, jobs[0], "cancelled")
    assert client.get(f"/v1/jobs/{jobs[1]}").json["status"] == "queued"
    engine.submit_error = None
    engine.gate.set()
    wait_for(client, jobs[1], "done")
    second.extensions[EXTENSION].close()


def test_a_draining_server_leaves_its_jobs_for_the_next(make_app: Callable[..., Flask], engine: ScriptedEngine) -> None:
    engine.gate.clear()
    app = make_app()
    job = submit(app.test_client())
    wait_for(app.test_client(), job["id"], "running")
    app.extensions["dalle_server"].drain()
    engine.stop()
    time.sleep(0.1)
    assert app.test_client().get(f"/v1/jobs/{job['id']}").json["status"] == "running"
    app.extensions[EXTENSION].close()


def test_a_drain_ends_the_streams_once_nothing_runs(make_app: Callable[..., Flask], engine: ScriptedEngine) -> None:
    engine.gate.clear()
    app = make_app()
    submit(app.test_client())
    viewer = Viewer(app.test_client(), "/v1/jobs/events")
    viewer.read_until("progress")
    app.extensions["dalle_server"].drain()
    engine.gate.set()
    assert viewer.read_until("never")[-1] == "done"  # read_until returned, so the stream has ended
    app.extensions[EXTENSION].close()


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


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
    with pytest.raises(StorageError) as failed, store.rows._database.writing() as connection:
        connection.execute(sa.text("INSERT INTO nowhere VALUES (:prompt)"), {"prompt": wish})
    logging.getLogger("test").exception("jobs", exc_info=failed.value)
    assert "nowhere" in caplog.text
    assert wish not in caplog.text
    app.extensions[EXTENSION].close()
