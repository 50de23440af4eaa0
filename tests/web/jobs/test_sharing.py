"""What a server does about the jobs that it shares with others, as its database comes and goes: no PostgreSQL here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dalle_server.errors import NotReady
from dalle_server.web.jobs import relay, sharing
from dalle_server.web.jobs.feed import Feed
from dalle_server.web.jobs.pump import Jobs
from dalle_server.web.jobs.relay import Relay
from dalle_server.web.jobs.sharing import Sharing
from tests.web.jobs.storage.held import Held
from tests.web.waits import until


class Rows:
    """A database that can be away."""

    database = None
    is_away = False

    def get(self, job_id: str) -> Any:
        if self.is_away:
            raise NotReady("the jobs database does not answer")
        return SimpleNamespace(id=job_id, is_finished=False)

    def statuses(self, ids: object) -> dict[str, str]:
        return {}


class Leases:
    holder, lease_s = "here", 30.0

    def __init__(self, *free: str):
        self.free, self.held = list(free), dict[str, bool]()

    def beat(self) -> None: ...

    def mine(self) -> dict[str, bool]:
        return dict(self.held)

    def claim(self, most: int) -> list[str]:
        claimed, self.free = self.free[:most], self.free[most:]
        self.held |= dict.fromkeys(claimed, False)
        return claimed


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Sharing, Leases, Held, Rows]]:
    monkeypatch.setattr(sharing, "Relay", lambda *args, **kwargs: SimpleNamespace(start=lambda: None))

    def make(*free: str) -> tuple[Sharing, Leases, Held, Rows]:
        leases, held, rows = Leases(*free), Held(), Rows()
        store: Any = SimpleNamespace(rows=rows)
        feed = Feed(max_viewers=1)
        return Sharing(store, cast(Any, leases), feed, cast(Jobs, held)), leases, held, rows

    return make


def test_jobs_that_were_claimed_as_the_database_went_away_are_taken_later(
    look: Callable[..., tuple[Sharing, Leases, Held, Rows]],
) -> None:
    shared, leases, held, rows = look("job-3", "job-1", "job-2")
    rows.is_away = True
    with pytest.raises(NotReady):
        shared.look()
    assert leases.held and not held.local
    rows.is_away = False
    shared.look_soon()
    shared.look()
    assert held.local == {"job-1", "job-2", "job-3"} and held.taken == ["job-3", "job-1", "job-2"], "oldest first"


def test_a_job_whose_end_could_not_be_told_is_not_drawn_again(
    look: Callable[..., tuple[Sharing, Leases, Held, Rows]],
) -> None:
    shared, leases, held, _ = look()
    leases.held["job-1"], held.ended = True, {"job-1"}
    shared.look()
    assert not held.local and held.cancelled == ["job-1"]


def test_every_outage_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(relay, "AGAIN_S", 0.01)
    tries: list[bool] = []
    plan = [False, False, True, False, False, True]  # whether the database is there: two outages

    class Database:
        @contextmanager
        def autocommit(self) -> Iterator[Any]:
            tries.append(True)
            if len(tries) <= len(plan) and not plan[len(tries) - 1]:
                raise ConnectionError("away")
            yield None

    def work(connection: Any) -> None:
        if len(tries) < len(plan):
            raise ConnectionError("cut off")
        hearing.close()

    hearing = Relay(Database(), "here", lambda message: None, lambda: None)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        hearing._again(work)
    until(lambda: len(tries) == len(plan))
    assert len([r for r in caplog.records if "is not heard for now" in r.message]) == 2
