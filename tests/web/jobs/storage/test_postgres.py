"""The same rows in PostgreSQL: what several servers will share comes through the same code."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from dalle_server.errors import DeadlineExceeded, NotReady
from dalle_server.web.jobs.storage import rows as rows_module
from dalle_server.web.jobs.storage.records import JobPicture
from dalle_server.web.jobs.storage.rows import JobRows, Query
from dalle_server.web.jobs.storage.schema import TooNew
from tests.web.jobs.postgres import Postgres
from tests.web.jobs.store_help import job


@pytest.fixture
def rows(server: Postgres) -> Iterator[JobRows]:
    opened = JobRows.open(sa.make_url(server.url))
    yield opened
    opened.close()
    engine = sa.create_engine(server.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS pictures, jobs, notes")
    engine.dispose()


def found(rows: JobRows, owner: str = "", *words: str, **query: object) -> list[str]:
    return [each.id for each in rows.find(owner, Query(words=words, **query))]  # type: ignore[arg-type]


def test_a_job_comes_back_as_it_was(rows: JobRows) -> None:
    made = replace(job(1, seed=2**63 - 1, prompt='groß "Äpfel" 林檎\0'), preview=False)
    rows.add(made)
    rows.put_picture("job-1", JobPicture(0, "job-1/0.png", 8, 8, 5))
    rows.put_picture("job-1", JobPicture(0, "job-1/0.png", 16, 8, 6))
    rows.update("job-1", status="done", finished_at=5.5, total_s=1.5, last_event=2**33, error={"message": "why"})
    back = rows.get("job-1")
    assert back is not None
    assert (back.request, back.preview, back.last_event) == (made.request, False, 2**33)
    assert [(picture.width_px, picture.size_bytes) for picture in back.pictures] == [(16, 6)]
    assert [(each.id, each.num_pictures, each.size_bytes) for each in rows.finished()] == [("job-1", 1, 6)]
    assert rows.totals() == (1, 6)
    rows.delete(["job-1"])
    assert rows.get("job-1") is None


def test_a_machine_that_vanished_is_noticed_within_seconds(server: Postgres) -> None:
    for query, wanted in (("", "5000"), ("&tcp_user_timeout=9000", "9000")):
        url = sa.make_url(server.url + query if "?" in server.url else server.url + query.replace("&", "?"))
        opened = JobRows.open(url)
        with opened.database.reading() as connection:
            told = connection.connection.dbapi_connection.info.get_parameters()
        opened.close()
        assert told["tcp_user_timeout"] == wanted and told["keepalives_idle"] == "5"


def test_lists_and_searches(rows: JobRows) -> None:
    for number in range(5):
        rows.add(job(number, prompt=f"Ein ÄPFEL number{number} 100% 林檎", seed=40 + number))
    rows.add(job(9, owner="other"))
    rows.put_picture("job-2", JobPicture(0, "job-2/0.png", 8, 8, 5))
    assert found(rows) == ["job-4", "job-3", "job-2", "job-1", "job-0"]
    assert found(rows, "", before="job-3", limit=2) == ["job-2", "job-1"]
    assert found(rows, "", "äpfel", "number2") == ["job-2"]
    assert found(rows, "", "43") == ["job-3"]
    assert found(rows, "", "林檎", "100%", limit=1) == ["job-4"]
    assert found(rows, "", "_pfel") == []
    assert found(rows, "", with_pictures=True) == ["job-2"]
    assert found(rows, "other", "apple") == ["job-9"]
    assert [each.id for each in rows.all()] == ["job-0", "job-1", "job-2", "job-3", "job-4", "job-9"]


def test_the_tables_are_made_once_and_a_newer_form_is_refused(rows: JobRows, server: Postgres) -> None:
    rows.add(job(1))
    rows.update("job-1", status="running")
    again = JobRows.open(sa.make_url(server.url))
    assert [each.status for each in again.take_up()] == ["queued"]
    again.remember("schema", 99)
    again.close()
    with pytest.raises(TooNew, match="schema 99"):
        JobRows.open(sa.make_url(server.url))


def test_servers_count_up_together(rows: JobRows, server: Postgres) -> None:
    rows.count_up("runs")
    other = JobRows.open(sa.make_url(server.url))
    numbers: list[int] = []

    def count(of: JobRows) -> None:
        for _ in range(20):
            numbers.append(of.count_up("runs"))

    threads = [threading.Thread(target=count, args=(of,)) for of in (rows, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(numbers) == list(range(2, 42))


def test_a_search_ends_at_its_deadline(rows: JobRows, monkeypatch: pytest.MonkeyPatch) -> None:
    rows.add(job(1))
    conditions = JobRows._conditions
    slow = sa.text("(SELECT count(*) FROM generate_series(1, 1000000000000)) > 0")
    monkeypatch.setattr(JobRows, "_conditions", lambda self, owner, query: [*conditions(self, owner, query), slow])
    monkeypatch.setattr(rows_module, "SEARCH_DEADLINE_S", 0.2)
    with pytest.raises(DeadlineExceeded):
        rows.find("", Query(words=("apple",)))
    monkeypatch.undo()
    assert found(rows, "", "apple") == ["job-1"]


def test_a_server_that_is_away_for_a_while_loses_nothing(rows: JobRows, server: Postgres) -> None:
    rows.add(job(1))
    server.stop()
    with pytest.raises(NotReady, match="does not answer"):
        rows.get("job-1")
    server.start()
    assert rows.get("job-1") is not None
