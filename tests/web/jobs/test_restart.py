"""Jobs that an earlier run of the server left, and a server on its way down."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.engine.tracker import Place
from dalle_server.errors import (
    DalleServerError,
    EngineDown,
    Overloaded,
    RateLimited,
)
from dalle_server.generation import Generation
from dalle_server.request import GenerationRequest
from dalle_server.web.jobs.current import EXTENSION
from tests.web.jobs.client import submit, wait_for
from tests.web.jobs.store_help import picture_bytes
from tests.web.scripted_engine import ScriptedEngine
from tests.web.waits import until


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


class Interrupted(ScriptedEngine):
    """`meanwhile` comes while the engine takes its next request."""

    meanwhile: Callable[[], None] | None = None

    def submit(self, request: GenerationRequest, held: Place | None = None) -> Generation:
        generation = super().submit(request, held)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return generation


def test_a_cancel_that_comes_while_the_engine_takes_a_waiting_job_reaches_it(
    make_app: Callable[..., Flask], engine: ScriptedEngine
) -> None:
    engine.gate.clear()
    first = make_app()
    job = submit(first.test_client())
    first.extensions[EXTENSION].close()
    second = make_app()
    client = second.test_client()
    engine.__class__ = Interrupted
    engine.meanwhile = lambda: client.post(f"/v1/jobs/{job['id']}/cancel").close()  # type: ignore[attr-defined]
    second.extensions[EXTENSION].start()
    wait_for(client, job["id"], "cancelled")
    until(lambda: engine.generations[-1].cancel_reason is not None)
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


WIDE = {"size": "24x16", "fit": "paint"}  # two windows


def in_its_first_window(make_app: Callable[..., Flask], engine: ScriptedEngine) -> tuple[Flask, FlaskClient, Any]:
    """A wide job that goes on when the engine's gate opens."""
    engine.gate.clear()
    app = make_app()
    client = app.test_client()
    job = submit(client, **WIDE)
    wait_for(client, job["id"], "running")
    return app, client, job


def test_a_wide_picture_goes_on_while_the_server_drains(make_app: Callable[..., Flask], engine: ScriptedEngine) -> None:
    app, client, job = in_its_first_window(make_app, engine)
    app.extensions["dalle_server"].drain()
    engine.gate.set()
    wait_for(client, job["id"], "done")
    assert len(engine.requests) == 2
    app.extensions[EXTENSION].close()


def test_a_job_whose_engine_goes_down_between_two_windows_waits_for_it(
    make_app: Callable[..., Flask], engine: ScriptedEngine
) -> None:
    expected = pictures((alone := make_app()).test_client(), **WIDE)
    alone.extensions[EXTENSION].close()
    app, client, job = in_its_first_window(make_app, engine)
    engine.submit_error = EngineDown("the engine is failed; try again shortly")
    engine.gate.set()
    wait_for(client, job["id"], "queued")
    engine.submit_error = None
    done = wait_for(client, job["id"], "done")
    assert [client.get(image["url"]).data for image in done["images"]] == expected
    app.extensions[EXTENSION].close()


def test_a_job_between_two_windows_is_left_for_the_next_server(
    make_app: Callable[..., Flask], engine: ScriptedEngine
) -> None:
    first, client, job = in_its_first_window(make_app, engine)
    first.extensions["dalle_server"].drain()
    engine.submit_error = EngineDown("the engine is stopped; try again shortly")
    engine.gate.set()
    until(lambda: not first.extensions[EXTENSION].local_ids())
    assert client.get(f"/v1/jobs/{job['id']}").json["status"] == "running"
    first.extensions[EXTENSION].close()
    engine.submit_error = None
    second = make_app()
    second.extensions[EXTENSION].start()
    assert len(wait_for(second.test_client(), job["id"], "done")["images"]) == 1
    second.extensions[EXTENSION].close()
