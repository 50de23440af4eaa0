"""Words between servers on one PostgreSQL get lost; ends of jobs do not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TextIO, cast

import pytest
import sqlalchemy as sa

from dalle_server.web.jobs.feed import Entry, Feed
from dalle_server.web.jobs.pump import Jobs
from dalle_server.web.jobs.relay import CHANNEL, Relay
from dalle_server.web.jobs.sharing import Sharing
from dalle_server.web.jobs.storage.records import TERMINAL
from dalle_server.web.jobs.storage.store import Store
from tests.web.jobs.storage.fronts import Fronts, show, submit
from tests.web.jobs.storage.held import Held
from tests.web.jobs.store_help import job, picture_bytes
from tests.web.waits import until

MOST_KEEP_ALIVES = 3  # 45 s without news


class Cutter:
    """Another client of the database, which ends connections as a failing network does."""

    def __init__(self, database: str):
        self._engine = sa.create_engine(sa.make_url(database).set(drivername="postgresql+psycopg"))

    def listeners(self) -> int:
        return self._ask("count(*)")

    def cut_listeners(self) -> None:
        self._ask("count(pg_terminate_backend(pid))")

    def cut_all(self) -> None:
        self._ask("count(pg_terminate_backend(pid))", "pid <> pg_backend_pid()")

    def close(self) -> None:
        self._engine.dispose()

    def _ask(self, what: str, of: str = f"query = 'LISTEN {CHANNEL}'") -> int:
        with self._engine.connect() as connection:
            asked = f"SELECT {what} FROM pg_stat_activity WHERE datname = current_database() AND {of}"
            return int(connection.exec_driver_sql(asked).scalar_one())


@pytest.fixture
def cutter(database: str) -> Iterator[Cutter]:
    made = Cutter(database)
    yield made
    made.close()


# -- what is told


def test_no_word_is_lost_with_the_connection_that_was_to_tell_it(stores: tuple[Store, Store], cutter: Cutter) -> None:
    heard: list[str] = []
    listened: list[bool] = []
    teller = Relay(stores[0].rows.database, "one", lambda message: None, missed=lambda: None)
    hearer = Relay(
        stores[1].rows.database,
        "two",
        lambda message: heard.append(message["job"]),
        missed=lambda: listened.append(True),
    )
    for each in (teller, hearer):
        each.start()
    until(lambda: len(listened) == 1)
    teller.tell("done", "job-0")
    until(lambda: heard == ["job-0"])
    cutter.cut_all()
    until(lambda: len(listened) >= 2)
    for number in range(1, 4):
        teller.tell("done", f"job-{number}")
    until(lambda: "job-3" in heard)
    for each in (teller, hearer):
        each.close()
    # A word may come twice: the connection was cut before it was known that it had been told.
    assert list(dict.fromkeys(heard)) == ["job-0", "job-1", "job-2", "job-3"]


# -- what is looked for in the rows


class Watched:
    """A server, where somebody watches job-1 of another one, which tells nothing."""

    def __init__(self, other: Store, store: Store):
        assert other.leases is not None and store.leases is not None
        other.leases.lease_s = store.leases.lease_s = 600.0  # nobody takes anything over, nor looks again by himself
        self.other, self.feed, self.held = other, Feed(max_viewers=4), Held()
        self.sharing = Sharing(store, store.leases, self.feed, cast(Jobs, self.held))
        self.job = job(1)
        other.add(self.job)
        self.feed.expect("job-1", "")

    def draw(self, index: int) -> None:
        self.other.add_picture(self.job, index, picture_bytes(self.job, index), (8, 8))

    def look(self) -> None:
        self.sharing.look_soon()
        self.sharing.look()

    def told(self) -> tuple[list[Entry], bool]:
        """All that a viewer of the job gets, and whether its stream is over."""
        return self.feed.wait("", "job-1", 0, patience_s=0.0)


@pytest.fixture
def watched(stores: tuple[Store, Store]) -> Iterator[Watched]:
    made = Watched(*stores)
    yield made
    made.sharing.close()


@pytest.mark.parametrize("status", TERMINAL)
def test_an_end_of_which_no_word_came_is_told(watched: Watched, status: str) -> None:
    watched.draw(0)
    watched.feed.hear("job-1", "", "image", {"index": 0})
    watched.look()
    assert [entry.event for entry in watched.told()[0]] == ["image"] and not watched.told()[1]
    watched.draw(1)
    watched.other.rows.update("job-1", status=status, error={"message": "why"} if status == "failed" else None)
    watched.look()
    found, over = watched.told()
    assert [(entry.event, entry.data.get("index")) for entry in found] == [("image", 0), ("image", 1), (status, None)]
    assert over
    match status:
        case "done":
            assert [image["url"][-2:] for image in found[-1].data["images"]] == ["/0", "/1"]
        case "failed":
            assert found[-1].data["error"] == {"message": "why"}
        case "cancelled":
            assert found[-1].data["reason"] == "cancelled"


def test_the_stream_of_a_job_that_was_deleted_meanwhile_is_over(watched: Watched) -> None:
    watched.other.rows.update("job-1", status="done")
    watched.other.delete("job-1")
    assert watched.told() == ([], False)
    watched.look()
    assert watched.told() == ([], True)


def test_a_job_that_is_drawn_here_ends_by_itself(watched: Watched) -> None:
    watched.held.local = {"job-1"}
    watched.other.rows.update("job-1", status="done")
    watched.feed.open("job-1", "")
    watched.sharing._tell_missed_ends()
    assert watched.told() == ([], False)


def test_a_cancel_of_which_no_word_came_is_done(watched: Watched, stores: tuple[Store, Store]) -> None:
    stores[1].add(job(2))
    watched.held.local = {"job-2"}
    assert stores[0].leases is not None
    stores[0].leases.ask_to_cancel("job-2")
    watched.look()
    assert watched.held.cancelled == ["job-2"]


def test_rows_are_looked_at_as_soon_as_words_come_again(watched: Watched, cutter: Cutter) -> None:
    until(lambda: cutter.listeners() == 1)
    watched.look()
    watched.other.rows.update("job-1", status="done")
    cutter.cut_listeners()

    def is_over() -> bool:
        watched.sharing.look()
        return watched.told()[1]

    until(is_over)


# -- two processes


def events_of(said: TextIO) -> Iterator[str]:
    """The names of a stream's events. It may be silent for a while, but not for good."""
    keep_alives = 0
    while line := said.readline():
        keep_alives += line.startswith(": keep-alive")
        assert keep_alives < MOST_KEEP_ALIVES, "nothing comes any more"
        if line.startswith("event: "):
            yield line.split()[1]


def test_a_stream_ends_though_its_server_was_cut_off_when_the_job_ended(fronts: Fronts, cutter: Cutter) -> None:
    with fronts.start() as one, fronts.start() as two:
        one.ready(), two.ready()
        made = submit(one, 1, num_images=8)
        asked = f"GET /v1/jobs/{made['id']}/events HTTP/1.1\r\nHost: x\r\n\r\n"
        with two.raw(asked.encode()) as stream, stream.makefile("r", encoding="utf-8") as said:
            events = events_of(said)
            seen = [next(events)]
            os.kill(two.process.pid, signal.SIGSTOP)  # it cannot listen again before the job has ended
            cutter.cut_listeners()
            one.wait_for(lambda: show(one, made)["finished_at"])
            os.kill(two.process.pid, signal.SIGCONT)
            while seen[-1] != "done":
                seen.append(next(events))
            assert seen.count("image") == 8
