"""The events of jobs: streams, viewers that come back, previews."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.web.jobs.current import EXTENSION
from tests.web.jobs.client import Json, Viewer, events, submit, wait_for
from tests.web.scripted_engine import ScriptedEngine
from tests.web.waits import until


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


@pytest.mark.parametrize("last", ["9" * 5000, "9" * 20, "-1", "\u0663", "1e9", "x"])
def test_a_strange_last_event_id_is_no_id(client: FlaskClient, last: str) -> None:
    done = wait_for(client, submit(client)["id"], "done")
    headers = {"Last-Event-ID": last.encode().decode("latin-1")}
    assert client.get(f"/v1/jobs/{done['id']}/events", headers=headers).status_code == 200
    view = client.get("/v1/jobs/events", headers=headers)
    assert view.status_code == 200
    view.close()


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
