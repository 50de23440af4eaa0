"""Which of several servers on one PostgreSQL runs which jobs.

A server says every few seconds that it lives. A job is its holder's as long as that goes on; one whose holder has been
silent for `lease_s`, by the database's clock, is anybody's. Nothing is lost by taking one over too early: pictures are
functions of their seeds, and what a former holder writes about the job's state is ignored.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from dalle_server.web.jobs.storage.database import Database
from dalle_server.web.jobs.storage.records import UNFINISHED
from dalle_server.web.jobs.storage.schema import jobs, servers

BEATS = 6  # in a lease

_now = sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)


class Leases:
    """Any thread may call. Raise NotReady while the database is away."""

    def __init__(self, database: Database, lease_s: float):
        self.holder = f"server-{secrets.token_hex(8)}"
        self.lease_s = lease_s
        self._database = database

    def beat(self) -> None:
        """This server lives."""
        here = insert(servers).values(id=self.holder, seen_at=_now)
        with self._database.writing() as connection:
            connection.execute(here.on_conflict_do_update(index_elements=[servers.c.id], set_={"seen_at": _now}))
            connection.execute(servers.delete().where(servers.c.seen_at < _now - 100 * self.lease_s))

    def leave(self) -> None:
        """Its jobs are anybody's at once."""
        with self._database.writing() as connection:
            connection.execute(servers.delete().where(servers.c.id == self.holder))

    def claim(self, most: int) -> list[str]:
        """Take over up to `most` unfinished jobs that nobody holds, oldest first; they wait again. Their ids."""
        lives = sa.select(servers.c.id).where(servers.c.seen_at > _now - self.lease_s)
        is_lost = sa.and_(jobs.c.holder != self.holder, jobs.c.holder.not_in(lives))  # its own it has, however late
        is_free = sa.or_(jobs.c.holder.is_(None), is_lost)
        free = (
            sa.select(jobs.c.number)
            .where(jobs.c.status.in_(UNFINISHED), is_free)
            .order_by(jobs.c.number)
            .limit(most)
            .with_for_update(skip_locked=True)
        )
        with self._database.writing() as connection:
            numbers = connection.execute(free).scalars().all()
            taken = {"holder": self.holder, "status": "queued", "started_at": None, "queue_s": None}
            connection.execute(jobs.update().where(jobs.c.number.in_(numbers)).values(**taken))
            return list(
                connection.execute(
                    sa.select(jobs.c.id).where(jobs.c.number.in_(numbers)).order_by(jobs.c.number)
                ).scalars()
            )

    def mine(self) -> dict[str, bool]:
        """The unfinished jobs that this server holds, oldest first, and whether somebody asked another server to cancel
        it.
        """
        held = (
            sa.select(jobs.c.id, jobs.c.cancel_asked)
            .where(jobs.c.holder == self.holder, jobs.c.status.in_(UNFINISHED))
            .order_by(jobs.c.number)
        )
        with self._database.reading() as connection:
            return {job_id: bool(asked) for job_id, asked in connection.execute(held)}

    def ask_to_cancel(self, job_id: str) -> None:
        """Whoever holds the job, or will."""
        with self._database.writing() as connection:
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(cancel_asked=True))
