"""The tables of the jobs database, and the way from every earlier form of them to this one.

Version 1 was that of dalle-server 0.1.0; version 2 knew no given pictures, version 3 no servers
beside it, version 4 no sizes, version 5 no choice of the likeliest. A database of a newer
version is refused and left as it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from dalle_server.errors import DalleServerError
from dalle_server.request import GenerationRequest, SamplingParams

VERSION = 6

_PREPARING = 0x64616C6C65  # the number of a lock, the same for all servers

log = logging.getLogger(__name__)

metadata = sa.MetaData()
_Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up by itself in an INTEGER only
_Real: sa.Double[float] = sa.Double()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("number", _Number, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),  # GenerationRequest.to_dict, as JSON
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("preview", sa.Boolean, nullable=False),
    sa.Column("search", sa.Text, nullable=False),
    sa.Column("created_at", _Real, nullable=False),
    sa.Column("started_at", _Real),
    sa.Column("finished_at", _Real),
    sa.Column("queue_s", _Real),
    sa.Column("total_s", _Real),
    sa.Column("error", sa.Text),
    sa.Column("faults", sa.Integer, nullable=False, server_default="0"),
    sa.Column("last_event", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("over", sa.Text),  # given.Over, as JSON
    sa.Column("given_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("form", sa.Text),  # drawing.form.Form.to_dict, as JSON
    sa.Column("best_of", sa.Integer),  # so many are drawn for the request's pictures
    sa.Column("holder", sa.Text),  # the server that draws it, of several: servers.id
    sa.Column("cancel_asked", sa.Boolean, nullable=False, server_default=sa.false()),  # by a client of another server
    sqlite_autoincrement=True,  # no number is given twice: pages of the list go by it
)
pictures = sa.Table(
    "pictures",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("image_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("width_px", sa.Integer, nullable=False),
    sa.Column("height_px", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("noise", sa.BigInteger),  # of one that was chosen of many: the index of its key
    sa.Column("score", _Real),
)
notes = sa.Table(  # what the servers of this database remember: a name and a number each
    "notes",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", _Real, nullable=False),
)
servers = sa.Table(  # on one PostgreSQL: see leases.py
    "servers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("seen_at", _Real, nullable=False),  # by the database's clock
)
sa.Index("jobs_of_owner", jobs.c.owner, jobs.c.number)
sa.Index("jobs_by_status", jobs.c.status, jobs.c.number)

# A search finds parts of words in any script: an index of all runs of three characters.
_SQLITE_SEARCH = (
    "CREATE VIRTUAL TABLE jobs_search USING fts5(search, content='jobs', content_rowid='number', tokenize='trigram')",
    "CREATE TRIGGER jobs_search_add AFTER INSERT ON jobs BEGIN"
    " INSERT INTO jobs_search (rowid, search) VALUES (new.number, new.search); END",
    "CREATE TRIGGER jobs_search_drop AFTER DELETE ON jobs BEGIN"
    " INSERT INTO jobs_search (jobs_search, rowid, search) VALUES ('delete', old.number, old.search); END",
    "INSERT INTO jobs_search (jobs_search) VALUES ('rebuild')",
)
_POSTGRES_SEARCH = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    "CREATE INDEX jobs_search ON jobs USING gin (search gin_trgm_ops)",
)


class TooNew(Exception):
    """The database is of a newer program."""


def prepare(connection: sa.Connection) -> None:
    """Create what is missing and migrate what is old, inside the caller's transaction. Raises TooNew."""
    if not _is_sqlite(connection):  # servers that start together make the tables once
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PREPARING)))
    version = _version(connection)
    if version > VERSION:
        raise TooNew(f"the jobs database has schema {version}, this program knows {VERSION}")
    if version == VERSION:
        return
    if version > 1:
        for table in (jobs, pictures):
            _add_missing_columns(connection, table)
        metadata.create_all(connection)
        _set_version(connection)
        return
    old = _taken_aside(connection) if version == 1 else []
    metadata.create_all(connection)
    _create_search(connection)
    for table, rows in old:
        if rows:
            connection.execute(table.insert(), rows)
    _set_version(connection)
    if old:
        log.info("jobs of dalle-server 0.1.0 migrated: %d", len(old[0][1]))


def has_search_index(connection: sa.Connection) -> bool:
    """Whether `jobs_search` is there: a few builds of SQLite lack FTS5."""
    return "jobs_search" in sa.inspect(connection).get_table_names() if _is_sqlite(connection) else False


def _is_sqlite(connection: sa.Connection) -> bool:
    return connection.dialect.name == "sqlite"


def _version(connection: sa.Connection) -> int:
    if _is_sqlite(connection):  # where 0.1.0 looks as well, and refuses
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if not sa.inspect(connection).has_table("notes"):
        return 0
    found = connection.execute(sa.select(notes.c.value).where(notes.c.name == "schema")).scalar()
    return int(found or 0)


def _set_version(connection: sa.Connection) -> None:
    if _is_sqlite(connection):
        connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
    else:
        connection.execute(notes.delete().where(notes.c.name == "schema"))
        connection.execute(notes.insert().values(name="schema", value=VERSION))


def _create_search(connection: sa.Connection) -> None:
    """Without it a search reads every row of its owner, within its deadline."""
    try:
        with connection.begin_nested():
            for statement in _SQLITE_SEARCH if _is_sqlite(connection) else _POSTGRES_SEARCH:
                connection.exec_driver_sql(statement)
    except sa.exc.DBAPIError as error:
        log.warning("searches of jobs will be slow: this database cannot index parts of words (%s)", error.orig)


def _add_missing_columns(connection: sa.Connection, table: sa.Table) -> None:
    there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    for new in table.c:
        if new.name not in there:
            column = sa.schema.CreateColumn(new).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column}")


# -- from version 1


def _taken_aside(connection: sa.Connection) -> list[tuple[sa.Table, list[dict[str, Any]]]]:
    """The rows of version 1 in today's form; its tables are dropped."""
    old_jobs = connection.exec_driver_sql("SELECT * FROM jobs ORDER BY number").mappings().all()
    old_pictures = connection.exec_driver_sql("SELECT * FROM pictures").mappings().all()
    for statement in ("DROP TABLE pictures", "DROP TABLE jobs"):
        connection.exec_driver_sql(statement)
    return [(jobs, [_job_of_1(dict(row)) for row in old_jobs]), (pictures, [dict(row) for row in old_pictures])]


def _job_of_1(row: dict[str, Any]) -> dict[str, Any]:
    """What cannot be read is kept as it is: `records.from_values` tells it."""
    shown: dict[str, Any] = {"model": "", "digest": "", "format": "png", "preview": True}
    try:
        old = json.loads(row["request"])
        wire = _request_of_1(old, client=row["owner"]).to_dict()
        row |= {"request": json.dumps(wire)}
        shown = {name: _of_kind(type(value), old[name]) for name, value in shown.items()}
    except (ValueError, TypeError, KeyError, RecursionError, DalleServerError) as error:
        log.warning("the record of %s cannot be read (%r); it is kept as it is", row["id"], error)
    return {**row, **shown, "faults": 0, "last_event": 0}


def _request_of_1(old: dict[str, Any], client: str) -> GenerationRequest:
    sampling = {name: old[name] for name in ("temperature", "top_k", "top_p", "condition_scale")}
    return GenerationRequest.of(
        old["prompt"],
        old["num_images"],
        old["seed"],
        sampling=SamplingParams(**sampling),
        negative_prompt=old["negative_prompt"],
        client=client,
    )


def _of_kind(kind: Callable[..., Any], value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
