"""The rows of jobs: what is known of each, apart from the files of its pictures."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dalle_server.errors import Overloaded
from dalle_server.web.jobs.storage.database import DEADLINE_S, SEARCH_DEADLINE_S, Database
from dalle_server.web.jobs.storage.records import UNFINISHED, Job, JobPicture, from_values, searchable, to_values
from dalle_server.web.jobs.storage.schema import has_search_index, jobs, notes, pictures

SEARCHES = 2  # that may run at the same time, each of another owner: other calls always find a connection
INDEXED_CHARS = 3  # a shorter part of a word is not in the index
MANY = 500  # values of one statement


@dataclass(frozen=True, slots=True)
class Finished:
    """Of a finished job, what retention asks."""

    id: str
    owner: str
    finished_at: float
    num_pictures: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which jobs of an owner, newest first. Every one of `words` must occur in the prompt or the seed."""

    words: tuple[str, ...] = ()
    status: str = ""
    with_pictures: bool = False
    before: str = ""  # the id of a job: only older ones
    limit: int = 50


class JobRows:
    """All methods may be called from any thread, and end within a deadline. Raise StorageError, DeadlineExceeded,
    NotReady.
    """

    def __init__(self, database: Database, holder: str | None = None):
        """`holder` is this server, among several of the database: others' jobs are not its to change."""
        self.database, self._holder = database, holder
        self._turns = _Turns(SEARCHES)
        with database.reading() as connection:
            self._is_indexed = has_search_index(connection)

    @classmethod
    def open(cls, url: sa.URL) -> JobRows:
        """Raises what Database does."""
        database = Database(url)
        try:
            return cls(database)
        except BaseException:
            database.close()
            raise

    def add(self, job: Job) -> None:
        with self.database.writing() as connection:
            connection.execute(jobs.insert().values(**to_values(job), holder=self._holder))
            if job.pictures:
                connection.execute(pictures.insert(), [_picture_values(job.id, each) for each in job.pictures])

    def update(self, job_id: str, **values: Any) -> None:
        """`error` may be an object. Nothing happens to a job that another server holds now."""
        if values.get("error") is not None:
            values["error"] = json.dumps(values["error"])
        with self.database.writing() as connection:
            held = sa.true() if self._holder is None else jobs.c.holder == self._holder
            connection.execute(jobs.update().where(jobs.c.id == job_id, held).values(**values))

    def put_picture(self, job_id: str, picture: JobPicture) -> None:
        """The same index again replaces it."""
        with self.database.writing() as connection:
            connection.execute(self._upsert(pictures, _picture_values(job_id, picture)))

    def drop_pictures(self, job_id: str, indexes: Iterable[int]) -> None:
        with self.database.writing() as connection:
            connection.execute(pictures.delete().where(_is_picture(job_id, list(indexes))))

    def delete(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        with self.database.writing() as connection:
            for some in _portions(job_ids):
                connection.execute(pictures.delete().where(pictures.c.job_id.in_(some)))
                connection.execute(jobs.delete().where(jobs.c.id.in_(some)))

    # -- reading

    def get(self, job_id: str) -> Job | None:
        with self.database.reading() as connection:
            found = _read(connection, sa.select(jobs).where(jobs.c.id == job_id))
        return found[0] if found else None

    def statuses(self, job_ids: Collection[str]) -> dict[str, str]:
        """Of those that are there."""
        found: dict[str, str] = {}
        for some in _portions(list(job_ids)):
            with self.database.reading() as connection:
                chosen = sa.select(jobs.c.id, jobs.c.status).where(jobs.c.id.in_(some))
                found.update({row.id: row.status for row in connection.execute(chosen)})
        return found

    def find(self, owner: str, query: Query, is_unwanted: Callable[[], bool] = lambda: False) -> list[Job]:
        """Stops soon after `is_unwanted()`. Raises Overloaded when too many search already."""
        wanted = self._chosen(query).where(*self._conditions(owner, query)).limit(query.limit)
        if not query.words:
            with self.database.reading(is_unwanted=is_unwanted) as connection:
                return _read(connection, wanted)
        with (
            self._turns.take(owner),
            self.database.reading(deadline_s=SEARCH_DEADLINE_S, is_unwanted=is_unwanted) as connection,
        ):
            return _read(connection, wanted)

    def take_up(self) -> list[Job]:
        """The unfinished jobs of servers that run no more, oldest first; from now on they wait again."""
        with self.database.writing() as connection:
            waits = {"status": "queued", "started_at": None, "queue_s": None}
            connection.execute(jobs.update().where(jobs.c.status.in_(UNFINISHED)).values(**waits))
            return [job for job in _read(connection, _UNFINISHED) if not job.is_damaged]

    def all(self) -> Iterator[Job]:
        """Every job, a portion at a time, oldest first."""
        last = -1
        while True:
            with self.database.reading() as connection:
                chosen = sa.select(jobs).where(jobs.c.number > last).order_by(jobs.c.number).limit(MANY)
                found = _read(connection, chosen)
                if not found:
                    return
                last = connection.execute(sa.select(jobs.c.number).where(jobs.c.id == found[-1].id)).scalar_one()
            yield from found

    def totals(self) -> tuple[int, int]:
        """How many jobs are finished, and how many bytes all pictures have, given ones too."""
        finished = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.status.not_in(UNFINISHED))
        columns = (pictures.c.size_bytes, jobs.c.given_bytes)
        sizes = [sa.select(sa.func.coalesce(sa.func.sum(column), 0)) for column in columns]
        with self.database.reading() as connection:
            size = sum(int(connection.execute(each).scalar_one()) for each in sizes)
            return int(connection.execute(finished).scalar_one()), size

    def finished(self) -> list[Finished]:
        """Oldest first."""
        count = sa.func.count(pictures.c.job_id)
        size = sa.func.coalesce(sa.func.sum(pictures.c.size_bytes), 0) + jobs.c.given_bytes
        finished_at = sa.func.coalesce(jobs.c.finished_at, jobs.c.created_at)
        chosen = (
            sa.select(jobs.c.id, jobs.c.owner, finished_at, count, size)
            .join_from(jobs, pictures, jobs.c.id == pictures.c.job_id, isouter=True)
            .where(jobs.c.status.not_in(UNFINISHED))
            .group_by(jobs.c.number)
            .order_by(jobs.c.number)
        )
        with self.database.reading() as connection:
            return [Finished(*row) for row in connection.execute(chosen)]

    # -- what the servers of this database remember

    def note(self, name: str) -> float | None:
        with self.database.reading() as connection:
            found: float | None = connection.execute(sa.select(notes.c.value).where(notes.c.name == name)).scalar()
        return found

    def remember(self, name: str, value: float) -> None:
        with self.database.writing() as connection:
            connection.execute(self._upsert(notes, {"name": name, "value": value}))

    def count_up(self, name: str) -> int:
        """1, 2, 3, …: never the same number twice, whichever server asks."""
        with self.database.writing() as connection:
            counted = self._upsert(notes, {"name": name, "value": 1}, {"value": notes.c.value + 1})
            return int(connection.execute(counted.returning(notes.c.value)).scalar_one())

    def close(self) -> None:
        self.database.close()

    def _upsert(self, table: sa.Table, values: dict[str, Any], changed: dict[str, Any] | None = None) -> Any:
        """A new row, or else `changed` (all of the values) of the one with that key: also where two servers do so."""
        insert = sqlite.insert if self.database.is_sqlite else postgresql.insert
        key = list(table.primary_key.columns)
        new = insert(table).values(**values)
        return new.on_conflict_do_update(index_elements=key, set_=changed or values)

    def _indexed(self, query: Query) -> list[str]:
        words = [searchable(word) for word in query.words]
        return [word for word in words if self._is_indexed and len(word) >= INDEXED_CHARS]

    def _chosen(self, query: Query) -> sa.Select[Any]:
        """Newest first, read from the index where it is asked: a word that many prompts have ends a page early."""
        if not self._indexed(query):
            return sa.select(jobs).order_by(jobs.c.number.desc())
        index = sa.table("jobs_search", sa.column("rowid", sa.Integer))
        both = sa.select(jobs).select_from(index).join(jobs, jobs.c.number == index.c.rowid)
        return both.order_by(index.c.rowid.desc())

    def _conditions(self, owner: str, query: Query) -> list[sa.ColumnElement[bool] | sa.TextClause]:
        found: list[sa.ColumnElement[bool] | sa.TextClause] = [jobs.c.owner == owner]
        words = [searchable(word) for word in query.words]
        indexed = self._indexed(query)
        if indexed:
            match = " AND ".join('"' + word.replace('"', '""') + '"' for word in indexed)
            found.append(sa.text("jobs_search MATCH :match").bindparams(match=match))
        found += [jobs.c.search.contains(word, autoescape=True) for word in words if word not in indexed]
        if query.status:
            found.append(jobs.c.status == query.status)
        if query.with_pictures:
            found.append(sa.exists().where(pictures.c.job_id == jobs.c.id))
        if query.before:
            before = jobs.alias()
            found.append(
                jobs.c.number < sa.select(before.c.number).where(before.c.id == query.before).scalar_subquery()
            )
        return found


_UNFINISHED = sa.select(jobs).where(jobs.c.status.in_(UNFINISHED)).order_by(jobs.c.number)


class _Turns:
    """At most `total` at the same time, and one of each owner; others wait their turn for a while."""

    def __init__(self, total: int):
        self._total = total
        self._taken: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, owner: str) -> Iterator[None]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_free(owner), DEADLINE_S):
                raise Overloaded("too many searches run at the same time; try again shortly", retry_after_s=2)
            self._taken[owner] += 1
        try:
            yield
        finally:
            with self._changed:
                del self._taken[owner]
                self._changed.notify_all()

    def _is_free(self, owner: str) -> bool:
        return owner not in self._taken and self._taken.total() < self._total


def _read(connection: sa.Connection, chosen: sa.Select[Any]) -> list[Job]:
    rows = [dict(row) for row in connection.execute(chosen).mappings()]
    found: dict[str, list[JobPicture]] = {row["id"]: [] for row in rows}
    for some in _portions(list(found)):
        owned = sa.select(pictures).where(pictures.c.job_id.in_(some)).order_by(pictures.c.image_index)
        for each in connection.execute(owned).mappings():
            values = dict(each)
            found[values.pop("job_id")].append(JobPicture(index=values.pop("image_index"), **values))
    return [from_values(row, tuple(found[row["id"]])) for row in rows]


def _picture_values(job_id: str, picture: JobPicture) -> dict[str, Any]:
    values = asdict(picture)
    return {"job_id": job_id, "image_index": values.pop("index"), **values}


def _is_picture(job_id: str, indexes: list[int]) -> sa.ColumnElement[bool]:
    return sa.and_(pictures.c.job_id == job_id, pictures.c.image_index.in_(indexes))


def _portions(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), MANY):
        yield values[start : start + MANY]
