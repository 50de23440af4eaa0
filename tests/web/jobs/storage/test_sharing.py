"""Two servers on one PostgreSQL and one picture store."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from PIL import Image

from dalle_server.errors import ConfigError, NotReady, StorageError
from dalle_server.web.jobs.storage.store import Store
from tests.web.jobs.postgres import Postgres
from tests.web.jobs.s3 import S3, s3
from tests.web.jobs.storage.fronts import LEASE_S, Fronts, show, submit, wait_until_over
from tests.web.jobs.store_help import job, picture_bytes
from tests.web.server_process import ServerProcess
from tests.web.waits import until


@pytest.fixture(scope="module")
def objects() -> Iterator[S3]:
    with s3() as server:
        yield server


def leases(store: Store) -> Any:
    assert store.leases is not None
    return store.leases


def test_a_job_is_its_holders_until_that_one_is_silent(stores: tuple[Store, Store]) -> None:
    one, two = stores
    for number in range(3):
        one.add(job(number))
    one.rows.update("job-1", status="done")
    leases(one).beat()
    assert leases(two).claim(10) == []
    leases(two).lease_s = 0.1
    until(lambda: bool(claimed := leases(two).claim(1)) and claimed == ["job-0"])
    assert leases(two).claim(10) == ["job-2"]
    assert set(leases(two).mine()) == {"job-0", "job-2"} and leases(one).mine() == {}


def test_what_a_former_holder_says_of_a_job_counts_no_more_but_its_pictures_do(stores: tuple[Store, Store]) -> None:
    one, two = stores
    made = job(1)
    one.add(made)
    leases(one).leave()
    assert leases(two).claim(10) == ["job-1"]
    two.rows.update("job-1", status="running")
    one.rows.update("job-1", status="failed", error={"message": "of yesterday"})
    for each in (one, two, one):
        each.add_picture(made, 0, picture_bytes(made, 0), (8, 8))
    found = two.rows.get("job-1")
    assert found is not None and (found.status, found.error, len(found.pictures)) == ("running", None, 1)


def test_claims_at_the_same_time_never_take_one_job_twice(stores: tuple[Store, Store]) -> None:
    one, two = stores
    for number in range(40):
        one.add(job(number))
    engine = sa.create_engine(one.rows.database.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET holder = 'a server that has gone'")
    engine.dispose()
    taken: list[str] = []

    def claim(store: Store) -> None:
        while got := leases(store).claim(3):
            taken.extend(got)

    threads = [threading.Thread(target=claim, args=(store,)) for store in (one, two) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken += leases(one).claim(100)  # what was locked by another claim just then
    assert len(taken) == len(set(taken)) == 40


def test_a_database_of_version_3_is_migrated_by_one_of_two_that_start_together(database: str, tmp_path: Path) -> None:
    first = Store(tmp_path, database)
    first.add(job(1))
    first.close()
    engine = sa.create_engine(first.rows.database.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs DROP COLUMN holder, DROP COLUMN cancel_asked")
        connection.exec_driver_sql("DROP TABLE servers")
        connection.exec_driver_sql("UPDATE notes SET value = 3 WHERE name = 'schema'")
    opened: list[Store] = []
    threads = [threading.Thread(target=lambda: opened.append(Store(tmp_path, database))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 3
    opened[0].take_up()
    assert leases(opened[0]).claim(10) == ["job-1"]
    for store in opened:
        store.close()
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE notes SET value = 99 WHERE name = 'schema'")
    engine.dispose()
    with pytest.raises(ConfigError, match=r"schema 99.*--database"):
        Store(tmp_path, database)


def test_a_database_that_is_not_there_is_no_end(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not answer"):
        Store(tmp_path, "postgresql://dalle@127.0.0.1:1/jobs")


# -- two processes


def drawn(server: ServerProcess, made: dict[str, Any]) -> list[bytes]:
    found = show(server, made)
    assert (found["status"], len(found["images"])) == ("done", made["num_images"]), found
    return [server.request("GET", image["url"])[2] for image in found["images"]]


@pytest.mark.parametrize("pictures", ["file", "s3"])
def test_jobs_of_a_killed_server_end_at_the_other_with_the_same_bytes(
    database: str, tmp_path: Path, pictures: str, objects: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in objects.environ.items():
        monkeypatch.setenv(name, value)
    fronts = Fronts(tmp_path, database, 0.05, objects.make_bucket("jobs") if pictures == "s3" else "")
    with fronts.start() as one, fronts.start() as two:
        one.ready(), two.ready()
        jobs = [submit(one, number) for number in range(4)]
        one.wait_for(lambda: show(two, jobs[0])["images"])  # seen from the other, while it runs
        one.process.kill()
        wait_until_over(two, jobs)
        quiet = [submit(two, number) for number in range(4)]
        wait_until_over(two, quiet)
        for killed, again in zip(jobs, quiet, strict=True):
            assert drawn(two, killed) == drawn(two, again)


def test_a_server_that_ends_in_order_leaves_its_jobs_at_once(fronts: Fronts) -> None:
    fronts.flags += ["--drain_timeout_s", "0"]
    with fronts.start() as one, fronts.start(step_s=0.0) as two:
        one.ready(), two.ready()
        jobs = [submit(one, number) for number in range(4)]
        one.process.terminate()
        assert one.exit_code() == 0
        wait_until_over(two, jobs)
        assert all(drawn(two, made) for made in jobs)


def test_jobs_are_watched_and_cancelled_from_any_server(fronts: Fronts) -> None:
    with fronts.start() as one, fronts.start() as two:
        one.ready(), two.ready()
        first, second = submit(one, 1), submit(one, 2)
        stream = two.raw(f"GET /v1/jobs/{first['id']}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        said = stream.makefile("r", encoding="utf-8")
        events = set()
        while "done" not in events and show(one, first)["finished_at"] is None:
            line = said.readline()
            if line.startswith("event: "):
                events.add(line.split()[1])
        while "done" not in events:
            line = said.readline()  # what was told before; a stream without an end fails by the patience of its socket
            assert not line.startswith(": keep-alive"), events
            if line.startswith("event: "):
                events.add(line.split()[1])
        assert {"progress", "image", "done"} <= events
        stream.close()
        slow = submit(one, 3, num_images=12)
        assert two.request("POST", f"/v1/jobs/{slow['id']}/cancel")[0] == 200
        wait_until_over(two, [slow, second])
        assert show(one, slow)["status"] == "cancelled"


def test_a_database_that_is_away_loses_nothing(fronts: Fronts, server: Postgres) -> None:
    with fronts.start() as one:
        one.ready()
        jobs = [submit(one, number) for number in range(3)]
        one.wait_for(lambda: show(one, jobs[0])["status"] == "running")
        server.stop()
        gone_at = time.monotonic()
        refused = one.request("POST", "/v1/jobs", {"prompt": "x"})
        assert refused[0] == 503 and "Retry-After" in refused[1]
        assert one.get(f"/v1/jobs/{jobs[0]['id']}")[0] == 503
        assert one.request("POST", "/dalle", {"text": "x", "num_images": 1})[0] == 200, "who needs no jobs goes on"
        until(lambda: time.monotonic() - gone_at > 2 * LEASE_S)  # its lease has ended meanwhile
        assert "does not answer" in one.get("/ready")[1]["reason"]
        server.start()
        one.wait_for(lambda: one.get(f"/v1/jobs/{jobs[0]['id']}")[0] == 200)
        one.wait_for(lambda: one.get("/ready")[1]["reason"] is None)
        wait_until_over(one, jobs)
        quiet = [submit(one, number) for number in range(3)]
        wait_until_over(one, quiet)
        for made, again in zip(jobs, quiet, strict=True):
            assert drawn(one, made) == drawn(one, again)
            assert Image.open(io.BytesIO(drawn(one, made)[0])).format == "PNG"


def test_a_database_that_comes_after_the_server(tmp_path: Path, server: Postgres, database: str) -> None:
    fronts = Fronts(tmp_path, database, step_s=0.0)
    server.stop()
    with fronts.start() as one:
        one.ready()
        assert "does not answer" in one.get("/ready")[1]["reason"]
        server.start()
        one.wait_for(lambda: one.get("/ready")[1]["reason"] is None)
        made = submit(one, 1)
        wait_until_over(one, [made])
        assert drawn(one, made)


def test_not_ready_is_what_a_closed_store_says(stores: tuple[Store, Store]) -> None:
    stores[0].close()
    with pytest.raises(NotReady):
        leases(stores[0]).mine()
