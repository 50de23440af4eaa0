"""What one client does, and what a damaged row is, costs no other client and no other job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.engine.tracker import Place
from dalle_server.errors import DalleServerError, EngineFault, RateLimited
from dalle_server.generation import Generation
from dalle_server.request import GenerationRequest
from dalle_server.web.jobs.current import EXTENSION
from dalle_server.web.jobs.feed import RUN, Feed
from tests.web.jobs.client import Json, Viewer, events, submit, wait_for
from tests.web.scripted_engine import ScriptedEngine
from tests.web.waits import until

MINE, YOURS = "k" * 20, "l" * 20


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    app = make_app(max_images=4)
    yield app
    app.extensions[EXTENSION].close()


@pytest.fixture
def keyed(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    app = make_app(api_keys=(f"me:{MINE}", f"you:{YOURS}"), max_jobs=6, max_event_streams=4)
    yield app
    app.extensions[EXTENSION].close()


def client_of(app: Flask, key: str) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client


def count(client: FlaskClient) -> int:
    with client.get("/v1/jobs?limit=100") as listed:
        return len(listed.json["data"])


# -- cancel


def test_cancel_ends_a_running_job_and_keeps_it(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    job = submit(client)
    wait_for(client, job["id"], "running")
    assert client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    wait_for(client, job["id"], "cancelled")
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json["status"] == "cancelled"


def test_cancel_of_a_finished_job_keeps_its_pictures(client: FlaskClient) -> None:
    """It finished a moment before the button was pressed."""
    done = wait_for(client, submit(client)["id"], "done")
    for _ in range(2):
        reply = client.post(f"/v1/jobs/{done['id']}/cancel")
        assert (reply.status_code, reply.json["status"]) == (200, "done")
    assert client.get(done["images"][0]["url"]).status_code == 200


def test_cancel_of_no_job_or_anothers_is_not_found(keyed: Flask) -> None:
    mine, yours = client_of(keyed, MINE), client_of(keyed, YOURS)
    done = wait_for(mine, submit(mine)["id"], "done")
    assert yours.post(f"/v1/jobs/{done['id']}/cancel").status_code == 404
    assert mine.post("/v1/jobs/job-0/cancel").status_code == 404
    assert mine.post("/v1/jobs/..%2f..%2fetc/cancel").status_code == 404


# -- quotas


def test_a_flood_of_cancelled_jobs_costs_no_other_key_its_pictures(keyed: Flask, engine: ScriptedEngine) -> None:
    mine, yours = client_of(keyed, MINE), client_of(keyed, YOURS)
    kept = [wait_for(mine, submit(mine)["id"], "done")["id"] for _ in range(5)]
    engine.gate.clear()
    for _ in range(30):
        job = submit(yours)
        yours.post(f"/v1/jobs/{job['id']}/cancel").close()
        wait_for(yours, job["id"], "cancelled")
    until(lambda: count(yours) <= 1)
    assert [job["id"] for job in mine.get("/v1/jobs").json["data"]] == kept[::-1]


def test_the_limit_is_looked_at_whenever_jobs_end(make_app: Callable[..., Flask]) -> None:
    app = make_app(max_jobs=5)
    client = app.test_client()
    last = [submit(client)["id"] for _ in range(40)][-1]
    wait_for(client, last, "done")
    until(lambda: count(client) == 5)
    assert client.get("/v1/jobs").json["data"][0]["id"] == last
    app.extensions[EXTENSION].close()


def test_one_key_leaves_event_streams_to_others(keyed: Flask, engine: ScriptedEngine) -> None:
    mine, yours = client_of(keyed, MINE), client_of(keyed, YOURS)
    open_ones = [yours.get("/v1/jobs/events") for _ in range(2)]
    refused = yours.get("/v1/jobs/events")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert "you have too many" in refused.json["error"]["message"]
    view = mine.get("/v1/jobs/events")
    assert view.status_code == 200
    for each in (*open_ones, view):
        each.close()
    view = yours.get("/v1/jobs/events")
    assert view.status_code == 200
    view.close()


def test_a_stream_of_all_jobs_is_of_ones_own(keyed: Flask) -> None:
    mine, yours = client_of(keyed, MINE), client_of(keyed, YOURS)
    wait_for(yours, submit(yours)["id"], "done")
    own = submit(mine)["id"]
    viewer = Viewer(mine, "/v1/jobs/events")
    viewer.read_until("done")
    assert {data["job"] for _, _, data in viewer.seen} == {own}
    viewer.response.close()


# -- searches


@pytest.mark.parametrize("q", ["x" * 201, "a " * 17, "a " * 481])
def test_a_search_of_many_words_is_refused_by_name(client: FlaskClient, q: str) -> None:
    refused = client.get("/v1/jobs", query_string={"q": q})
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "q")


@pytest.mark.parametrize(
    "q", ["\0", "app\0le", '"', "'", "NOT", "a" * 200, "%", "{", "‮", "\ud800".encode("utf-8", "replace")]
)
def test_a_strange_search_finds_nothing_and_breaks_nothing(client: FlaskClient, q: str) -> None:
    wait_for(client, submit(client)["id"], "done")
    found = client.get("/v1/jobs", query_string={"q": q})
    assert found.status_code == 200, found.text
    strange = client.get("/v1/jobs", query_string={"after": q[:60]})
    assert (strange.status_code, strange.json["error"]["param"]) == (404, "after")


# -- event numbers


def test_events_are_numbered_above_those_of_every_earlier_run(
    make_app: Callable[..., Flask], engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer that was cut off hears of the job after a restart, though the clock was set back meanwhile."""
    engine.gate.clear()
    first = make_app()
    job = submit(first.test_client())
    before = Viewer(first.test_client(), "/v1/jobs/events")
    before.read_until("progress")
    first.extensions[EXTENSION].close()
    hour_ago = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: hour_ago)
    monkeypatch.setattr(time, "time_ns", lambda: int(hour_ago * 1e9))
    second = make_app()
    client = second.test_client()
    viewer = Viewer(client, "/v1/jobs/events", after=before.seen[-1][0])
    engine.gate.set()
    names = viewer.read_until("done")
    assert names[-2:] == ["image", "done"]
    assert min(number for number, _, _ in viewer.seen) > before.seen[-1][0]
    assert viewer.seen[-1][2]["job"] == job["id"]
    second.extensions[EXTENSION].close()


def test_an_id_of_another_life_is_no_id() -> None:
    feed = Feed(max_viewers=4)
    feed.begin(3)
    feed.open("job-1", "")
    feed.publish("job-1", "queued", {"position": 0})
    for after, heard in ((9 * RUN, True), (3 * RUN, True), (0, True), (3 * RUN + 1, False)):
        view = feed.join("", after=after)
        assert bool(next(view.entries(0.01))) == heard
        view.close()


def test_an_event_source_is_told_not_to_come_again(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    path = f"/v1/jobs/{submit(client)['id']}/events"
    viewer = Viewer(client, path)
    engine.gate.set()
    viewer.read_until("done")
    last = viewer.seen[-1][0]
    assert client.get(path, headers={"Last-Event-ID": str(last)}).status_code == 204
    retold = client.get(path)
    numbers = {number for number, _, _ in events(retold.text)}
    assert client.get(path, headers={"Last-Event-ID": str(max(numbers))}).status_code == 204
    assert client.get(path, headers={"Last-Event-ID": str(last - 5)}).status_code == 200


# -- rows


def corrupt(app: Flask, job_id: str, **values: Any) -> None:
    app.extensions[EXTENSION].store.rows.update(job_id, **values)


@pytest.mark.parametrize("request_json", ["no json", "{}", '{"version": 1, "prompt": 5}', "[]"])
def test_a_damaged_row_costs_its_job_alone(
    app: Flask, client: FlaskClient, engine: ScriptedEngine, request_json: str
) -> None:
    bad, good = (wait_for(client, submit(client)["id"], "done") for _ in range(2))
    corrupt(app, bad["id"], request=request_json)
    listed = client.get("/v1/jobs")
    assert listed.status_code == 200
    assert [(job["id"], job["status"]) for job in listed.json["data"]] == [(good["id"], "done"), (bad["id"], "failed")]
    shown = client.get(f"/v1/jobs/{bad['id']}").json
    assert "cannot be read" in shown["error"]["message"]
    assert client.get(f"/v1/jobs/{bad['id']}/events").status_code == 200
    assert client.delete(f"/v1/jobs/{bad['id']}").json["deleted"]
    wait_for(client, submit(client)["id"], "done")


def test_a_damaged_unfinished_row_does_not_stop_the_others(
    make_app: Callable[..., Flask], engine: ScriptedEngine
) -> None:
    engine.gate.clear()
    first = make_app()
    bad, good = (submit(first.test_client())["id"] for _ in range(2))
    wait_for(first.test_client(), good, "running")
    corrupt(first, bad, request="no json")
    first.extensions[EXTENSION].close()
    engine.gate.set()
    second = make_app()
    client = second.test_client()
    wait_for(client, good, "done")
    assert wait_for(client, bad, "failed")["prompt"].startswith("(the record")
    wait_for(client, submit(client)["id"], "done")
    second.extensions[EXTENSION].close()


def test_a_picture_whose_file_has_gone_is_forgotten(app: Flask, client: FlaskClient) -> None:
    done = wait_for(client, submit(client, num_images=2)["id"], "done")
    (app.extensions[EXTENSION].store.files.root / done["id"] / "0.png").unlink()
    assert client.get(done["images"][0]["url"]).status_code == 404
    left = client.get(f"/v1/jobs/{done['id']}").json["images"]
    assert [image["index"] for image in left] == [1]


# -- the backlog


class Choosy(ScriptedEngine):
    """Refuses one client, as a share of the queue does."""

    refused = ""

    def submit(self, request: GenerationRequest, held: Place | None = None) -> Generation:
        if request.client == self.refused:
            raise RateLimited("your share of the queue is full")
        return super().submit(request, held)


def test_a_client_over_his_share_holds_up_nobody_else(make_app: Callable[..., Flask], engine: ScriptedEngine) -> None:
    """And without keys, resumed jobs are still of the addresses that sent them."""
    engine.gate.clear()
    first = make_app()
    near, far = first.test_client(), first.test_client()
    far.environ_base["REMOTE_ADDR"] = "10.1.2.3"
    held, free = submit(far)["id"], submit(near)["id"]
    first.extensions[EXTENSION].close()
    engine.__class__ = Choosy
    engine.refused = "addr:10.1.2.3"  # type: ignore[attr-defined]
    engine.gate.set()
    second = make_app()
    client = second.test_client()
    client.get("/v1/jobs")
    wait_for(client, free, "done")
    assert client.get(f"/v1/jobs/{held}").json["status"] == "queued"
    engine.refused = ""  # type: ignore[attr-defined]
    wait_for(client, held, "done")
    assert {request.client for request in engine.requests[-2:]} == {"addr:10.1.2.3", "addr:127.0.0.1"}
    second.extensions[EXTENSION].close()


class Faulty(ScriptedEngine):
    """Ends generations as a crash of a step does, `faults` times."""

    faults = 0

    def submit(self, request: GenerationRequest, held: Place | None = None) -> Generation:
        fail_with: DalleServerError | None = EngineFault("the engine failed") if self.faults else None
        self.faults -= 1
        self.fail_with = fail_with
        generation = super().submit(request, held)
        while generation.terminal is None:
            time.sleep(0.005)
        return generation


@pytest.mark.parametrize(("faults", "end"), [(1, "done"), (2, "failed")])
def test_a_job_goes_on_once_after_a_fault_of_the_engine(
    app: Flask, client: FlaskClient, engine: ScriptedEngine, faults: int, end: str
) -> None:
    engine.__class__ = Faulty
    engine.faults = faults  # type: ignore[attr-defined]
    ended: Json = wait_for(client, submit(client, num_images=2)["id"], end)
    assert [image["index"] for image in ended["images"]] == ([0, 1] if end == "done" else [])
    assert len(engine.requests) == 2


def test_a_job_that_a_fault_ends_while_it_is_cancelled_is_not_drawn_again(
    client: FlaskClient, engine: ScriptedEngine
) -> None:
    engine.gate.clear()
    job = submit(client)
    wait_for(client, job["id"], "running")

    def crash(reason: str = "") -> None:
        engine.fail_with = EngineFault("the engine failed")
        engine.gate.set()

    engine.generations[0].cancel = crash
    client.post(f"/v1/jobs/{job['id']}/cancel").close()
    wait_for(client, job["id"], "failed")
    assert len(engine.requests) == 1
