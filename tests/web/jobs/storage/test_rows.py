"""Lists and searches: what they find, and that none of them holds anyone up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from dalle_server.errors import DalleServerError, DeadlineExceeded, NotReady, Overloaded
from dalle_server.web.jobs.storage import database, rows
from dalle_server.web.jobs.storage.rows import JobRows, Query
from dalle_server.web.jobs.storage.store import Store
from tests.web.jobs.store_help import finished, ids, job
from tests.web.waits import until


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(params=["indexed", "scanned"])
def searched(request: pytest.FixtureRequest, store: Store) -> Store:
    """With the index, and as a build of SQLite without FTS5 has to do it."""
    assert store.rows._is_indexed
    store.rows._is_indexed = request.param == "indexed"
    return store


def test_lists_newest_first_by_page_and_owner(store: Store) -> None:
    for number in range(5):
        store.add(job(number))
    store.add(job(9, owner="other"))
    assert ids(store) == ["job-4", "job-3", "job-2", "job-1", "job-0"]
    assert ids(store, limit=2) == ["job-4", "job-3"]
    assert ids(store, before="job-3", limit=2) == ["job-2", "job-1"]
    assert ids(store, "other") == ["job-9"]
    assert ids(store, status="done") == []
    assert len(ids(store, status="queued")) == 5


def test_lists_only_jobs_with_pictures_when_asked(store: Store) -> None:
    finished(store, 1)
    finished(store, 2, num_pictures=0, status="cancelled")
    assert ids(store, with_pictures=True) == ["job-1"]
    assert ids(store, with_pictures=True, before="job-2") == ["job-1"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("äpfel", "number2"), ["job-2"]),
        (("PFEL",), ["job-4", "job-3", "job-2", "job-1", "job-0"]),  # a part of a word, in any case
        (("43",), ["job-3"]),
        (("100%",), ["job-4", "job-3", "job-2", "job-1", "job-0"]),
        (("_pfel",), []),
        (("%",), ["job-4", "job-3", "job-2", "job-1", "job-0"]),
        (("1_0%",), []),
        (("GROSS",), ["job-4", "job-3", "job-2", "job-1", "job-0"]),
        (('"quoted',), ["job-4", "job-3", "job-2", "job-1", "job-0"]),
        (("林檎",), ["job-4", "job-3", "job-2", "job-1", "job-0"]),
        (("い林檎を",), ["job-4", "job-3", "job-2", "job-1", "job-0"]),
        (("AND",), []),
        (("a*b", "OR"), []),
        (("nul\0", "number1"), []),
    ],
)
def test_every_word_must_occur(searched: Store, words: tuple[str, ...], found: list[str]) -> None:
    for number in range(5):
        searched.add(job(number, prompt=f'Ein ÄPFEL number{number} 100% groß "quoted" 赤い林檎を', seed=40 + number))
    searched.add(job(8, owner="other", prompt="Ein ÄPFEL number2"))
    assert ids(searched, words=words) == found


def test_what_is_deleted_is_not_found(searched: Store) -> None:
    finished(searched, 1, prompt="a red apple")
    searched.delete("job-1")
    assert ids(searched, words=("apple",)) == []


@contextmanager
def endless(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every search counts to a number that it does not reach in an hour."""
    slow = sa.text(
        "(WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1e12) SELECT count(*) FROM c) > 0"
    )
    conditions = JobRows._conditions

    def hard(self: JobRows, owner: str, query: Query) -> list[object]:
        return [*conditions(self, owner, query), *([slow] if query.words else [])]

    monkeypatch.setattr(JobRows, "_conditions", hard)
    yield
    monkeypatch.undo()


def in_thread(call: object, *args: object, **kw: object) -> tuple[threading.Thread, list[DalleServerError]]:
    errors: list[DalleServerError] = []

    def run() -> None:
        try:
            call(*args, **kw)  # type: ignore[operator]
        except DalleServerError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_a_search_ends_at_its_deadline(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(job(1))
    monkeypatch.setattr(rows, "SEARCH_DEADLINE_S", 0.2)
    with endless(store, monkeypatch), pytest.raises(DeadlineExceeded, match="took too long"):
        ids(store, words=("apple",))
    assert ids(store, words=("apple",)) == ["job-1"]


def test_a_search_ends_when_its_client_has_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(job(1))
    monkeypatch.setattr(rows, "SEARCH_DEADLINE_S", 3600.0)
    with endless(store, monkeypatch):
        gone = threading.Event()
        thread, errors = in_thread(store.rows.find, "", Query(words=("apple",)), is_unwanted=gone.is_set)
        until(lambda: store.rows._turns._taken.total() == 1)
        assert thread.is_alive()
        gone.set()
        thread.join(30)
    assert not thread.is_alive()
    assert isinstance(errors[0], DeadlineExceeded)


def test_a_search_ends_when_the_store_closes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a drain keeps its limit whatever a request asks."""
    store.add(job(1))
    monkeypatch.setattr(rows, "SEARCH_DEADLINE_S", 3600.0)
    with endless(store, monkeypatch):
        thread, errors = in_thread(store.rows.find, "", Query(words=("apple",)))
        until(lambda: store.rows._turns._taken.total() == 1)
        store.close()
        thread.join(30)
    assert not thread.is_alive()
    assert isinstance(errors[0], NotReady)


def test_searches_hold_up_nobody_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each owner at a time, two in all; every other call goes on beside them."""
    for number, owner in enumerate(("", "other", "third")):
        store.add(job(number, owner=owner))
    monkeypatch.setattr(rows, "SEARCH_DEADLINE_S", 3600.0)
    monkeypatch.setattr(rows, "DEADLINE_S", 0.2)
    gone = threading.Event()
    with endless(store, monkeypatch):
        threads = [
            in_thread(store.rows.find, owner, Query(words=("apple",)), is_unwanted=gone.is_set)[0]
            for owner in ("", "other")
        ]
        until(lambda: store.rows._turns._taken.total() == 2)
        for owner in ("", "third"):
            with pytest.raises(Overloaded, match="searches"):
                store.rows.find(owner, Query(words=("apple",)))
        assert ids(store, "third") == ["job-2"]
        store.add(job(7))
        finished(store, 8)
        assert store.rows.get("job-7") is not None
        gone.set()
        for thread in threads:
            thread.join(30)


def test_a_writer_that_waits_too_long_is_told(store: Store) -> None:
    database_of = store.rows.database
    with database_of.writing():
        thread, errors = in_thread(_write_quickly, database_of)
        thread.join(30)
    assert isinstance(errors[0], DeadlineExceeded)


def _write_quickly(of: database.Database) -> None:
    with of.writing(deadline_s=0.05):
        raise AssertionError("another writes")


def test_numbers_are_given_once(store: Store, tmp_path: Path) -> None:
    assert [store.rows.count_up("runs") for _ in range(3)] == [1, 2, 3]
    store.rows.remember("clock", 1.5)
    store.close()
    again = Store(tmp_path)
    assert again.rows.count_up("runs") == 4
    assert again.rows.note("clock") == 1.5
    assert again.rows.note("nothing") is None


def test_a_failure_that_says_nothing_is_told_in_our_words(store: Store) -> None:
    with (
        pytest.raises(DalleServerError, match="data_dir could not be used: no reason was given"),
        store.rows.database.reading(),
    ):
        raise OSError
