"""How jobs end: cancelled, deleted, failed, and on a disk that refuses."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.errors import (
    GenerationFailed,
    StorageError,
)
from dalle_server.web.jobs import ends as jobs_ends
from dalle_server.web.jobs.current import EXTENSION
from dalle_server.web.jobs.storage.records import Job
from tests.web.jobs.client import events, submit, wait_for
from tests.web.scripted_engine import ScriptedEngine
from tests.web.waits import until


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
    wait_for(client, job["id"], "cancelled")


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


def test_a_job_that_could_not_be_stored_is_not_drawn(
    client: FlaskClient, app: Flask, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("the disk is full; free some space")

    engine.gate.clear()
    monkeypatch.setattr(app.extensions[EXTENSION].store, "add", refuse)
    assert client.post("/v1/jobs", json={"prompt": "x"}).status_code == 507
    assert engine.generations[0].cancel_reason == "the job could not be stored"


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


def test_who_looks_at_jobs_does_not_wait_for_a_row_that_is_written(app: Flask, client: FlaskClient) -> None:
    done = wait_for(client, submit(client)["id"], "done")
    jobs = app.extensions[EXTENSION]
    seen: list[int] = []
    with jobs._lock:  # as while another job's row is written
        looking = threading.Thread(target=lambda: seen.append(client.get(f"/v1/jobs/{done['id']}").status_code))
        looking.start()
        looking.join(10)
        assert seen == [200]
