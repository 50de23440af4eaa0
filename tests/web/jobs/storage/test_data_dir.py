"""A data_dir that is full, gone, or can never work: what goes on without it, and who is told what."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask

from dalle_server.errors import ConfigError, StorageError
from dalle_server.web.jobs import pump
from dalle_server.web.jobs.current import EXTENSION
from dalle_server.web.jobs.storage.rows import JobRows
from dalle_server.web.jobs.storage.store import Store
from tests.web.jobs.client import Viewer, submit, wait_for
from tests.web.scripted_engine import ScriptedEngine
from tests.web.server_process import ServerProcess
from tests.web.waits import until


@pytest.mark.parametrize("where", ["database", "take_up"])
def test_a_full_disk_at_start_costs_the_jobs_and_nothing_else(
    make_app: Callable[..., Flask], engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    engine.gate.clear()
    first = make_app()
    unfinished = submit(first.test_client())["id"]
    cancelled = submit(first.test_client())["id"]
    first.test_client().post(f"/v1/jobs/{cancelled}/cancel").close()
    wait_for(first.test_client(), cancelled, "cancelled")
    first.extensions[EXTENSION].close()
    engine.gate.set()

    def full(*_: object) -> None:
        raise StorageError("data_dir is full (No space left on device); free some space there")

    monkeypatch.setattr(pump, "OPEN_AGAIN_S", 0.05)
    name = "__init__" if where == "database" else "take_up"
    works = getattr(JobRows, name)
    monkeypatch.setattr(JobRows, name, full)
    second = make_app()
    second.extensions[EXTENSION].start()
    client = second.test_client()
    assert client.post("/dalle", json={"text": "a red apple", "num_images": 1}).status_code == 200
    refused = client.post("/v1/jobs", json={"prompt": "a red apple"})
    assert (refused.status_code, refused.json["error"]["code"]) == (507, "storage_error")
    assert str(tmp_path) not in refused.text
    ready = client.get("/ready")
    assert ready.status_code == 200
    assert "jobs are off" in ready.json["reason"] and "free some space" in ready.json["reason"]
    assert "dalle_jobs_available 0.0" in client.get("/metrics").text
    listed = client.get("/v1/jobs")
    if where == "take_up":  # the database can be read: so there is something to delete, which makes room
        assert [job["id"] for job in listed.json["data"]] == [cancelled, unfinished]
        assert client.delete(f"/v1/jobs/{cancelled}").json["deleted"]
    else:
        assert listed.status_code == 507
    monkeypatch.setattr(JobRows, name, works)
    until(lambda: second.extensions[EXTENSION].trouble is None)
    wait_for(client, unfinished, "done")
    assert client.get("/ready").json["reason"] is None
    assert "dalle_jobs_available 1.0" in client.get("/metrics").text
    second.extensions[EXTENSION].close()


@pytest.mark.parametrize("what", ["a file", "under a file"])
def test_a_directory_that_can_never_work_is_told_at_start(
    make_app: Callable[..., Flask], tmp_path: Path, what: str
) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    app = make_app(data_dir=path if what == "a file" else path / "below")
    with pytest.raises(ConfigError, match="choose a directory that can be written"):
        app.extensions[EXTENSION].start()


def test_a_data_dir_that_vanishes_fails_its_jobs_and_no_others(
    make_app: Callable[..., Flask], engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    app = make_app()
    client = app.test_client()
    job = submit(client)
    viewer = Viewer(client, f"/v1/jobs/{job['id']}/events")
    viewer.read_until("progress")
    shutil.rmtree(tmp_path / "data")
    engine.gate.set()
    refused = client.post("/v1/jobs", json={"prompt": "a red apple"})
    assert refused.status_code == 507
    assert "has gone while the server ran" in refused.json["error"]["message"]
    assert str(tmp_path) not in refused.text
    assert viewer.read_until("failed")[-1] == "failed"
    assert viewer.seen[-1][2]["error"]["code"] == "storage_error"
    shown = client.get(f"/v1/jobs/{job['id']}")
    assert shown.status_code == 507 and "has gone" in shown.json["error"]["message"]
    until(lambda: "has gone" in str(client.get("/ready").json["reason"]))
    assert client.post("/dalle", json={"text": "a red apple", "num_images": 1}).status_code == 200
    app.extensions[EXTENSION].close()


def test_jobs_of_a_newer_program_stop_the_start_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    connection = sqlite3.connect(tmp_path / "data" / "jobs.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with ServerProcess(tmp_path, "--model_version", "nano", real=True) as server:
        assert server.exit_code() == 2
        assert not any("Listening" in line for line in server.lines)
        assert "run the newer program, or choose another directory (--data_dir)" in "\n".join(server.errors)


def test_an_io_error_on_a_full_disk_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So says SQLite where it cannot make the memory file of its journal, as after a kill."""

    def refuse(*_: object) -> None:
        raise sa.exc.OperationalError("PRAGMA journal_mode = wal", {}, sqlite3.OperationalError("disk I/O error"))

    monkeypatch.setattr(JobRows, "__init__", refuse)
    with pytest.raises(ConfigError, match="disk I/O error"):
        Store(tmp_path)
    monkeypatch.setattr("dalle_server.web.jobs.storage.store.has_room", lambda _: False)
    with pytest.raises(StorageError, match=r"full \(disk I/O error\)"):
        Store(tmp_path)
