"""Jobs and their pictures on disk, so that both outlive a connection and the process.

DATA_DIR/jobs.sqlite3            one file, WAL, owned by one server at a time
DATA_DIR/jobs/JOB/0.png          a file is whole or absent; its row is written after it

A kill at any moment leaves at worst a file without a row; `Store` removes those when it opens.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peewee

from dalle_server.errors import ConfigError, NotReady, StorageError
from dalle_server.pictures.saving import write_whole

SCHEMA_VERSION = 1
SCHEMA = (
    """CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL,
        request TEXT NOT NULL, search TEXT NOT NULL, created_at REAL NOT NULL, started_at REAL, finished_at REAL,
        queue_s REAL, total_s REAL, error TEXT)""",
    "CREATE INDEX jobs_by_owner ON jobs (owner, number)",
    """CREATE TABLE pictures (
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, image_index INTEGER NOT NULL,
        file TEXT NOT NULL, width_px INTEGER NOT NULL, height_px INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
        PRIMARY KEY (job_id, image_index)) WITHOUT ROWID""",
)
# FULL: a 202 means that the job survives a power cut as well. EXCLUSIVE: a second server on the same
# directory would run the same jobs twice.
PRAGMAS = {"locking_mode": "exclusive", "journal_mode": "wal", "synchronous": "full", "foreign_keys": 1}
UNFINISHED = ("queued", "running")

# data_dir may be a directory that holds other things too: only what has a name of ours is ever deleted.
_DIRECTORY = re.compile(r"job-\w+")
_FILE = re.compile(r"\d+\.(png|jpeg|webp)|\.\d+\.(png|jpeg|webp)\.[0-9a-f]{8}\.tmp")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished picture of a job: `file` is relative to the pictures directory."""

    index: int
    file: str
    width_px: int
    height_px: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row, with its finished pictures. Times are Unix seconds."""

    id: str
    owner: str
    status: str  # "queued" | "running" | "done" | "failed" | "cancelled"
    request: dict[str, Any]  # as submitted, with seed and sampling resolved
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    queue_s: float | None = None
    total_s: float | None = None
    error: dict[str, Any] | None = None
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long finished jobs are kept; 0 = without this limit. The oldest go first."""

    max_age_s: float = 0
    max_jobs: int = 0
    max_bytes: int = 0


class Store:
    """All methods may be called from any thread. Raise StorageError when the disk refuses.

    One connection behind a lock: statements take well under a millisecond, and no request thread
    leaves a connection open behind it.
    """

    def __init__(self, data_dir: Path):
        """Raises ConfigError when the directory cannot be used: unwritable, newer, or another server's."""
        self.pictures_dir = data_dir.absolute() / "jobs"  # Flask's send_file would look beside the program
        self._path = data_dir / "jobs.sqlite3"
        self._lock = threading.RLock()
        # No autoconnect: a request that is late at a shutdown would open the file again, and keep it from others.
        self._database = peewee.SqliteDatabase(
            str(self._path), pragmas=PRAGMAS, timeout=1, thread_safe=False, check_same_thread=False, autoconnect=False
        )
        self._jobs = peewee.Table("jobs").bind(self._database)
        self._pictures = peewee.Table("pictures").bind(self._database)
        try:
            self.pictures_dir.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, peewee.DatabaseError) as error:
            self._database.close()
            in_use = "locked" in str(error)
            remedy = "another server uses it" if in_use else "choose a writable directory"
            raise ConfigError(f"data_dir {data_dir}: {error}; {remedy} (--data_dir)", param="data_dir") from error

    def close(self) -> None:
        with self._lock:
            self._database.close()

    # -- writing

    def add(self, job: Job) -> None:
        with self._transaction():
            self._jobs.insert(
                id=job.id,
                owner=job.owner,
                status=job.status,
                request=json.dumps(job.request),
                search=f"{job.request['prompt']} {job.request['seed']}".casefold(),
                created_at=job.created_at,
            ).execute()

    def start(self, job_id: str, queue_s: float) -> None:
        self._update(job_id, status="running", started_at=time.time(), queue_s=queue_s)

    def requeue(self, job_id: str) -> None:
        """It ran when the last server ended; now it waits again."""
        self._update(job_id, status="queued", started_at=None, queue_s=None)

    def finish(
        self, job_id: str, status: str, *, total_s: float | None = None, error: dict[str, Any] | None = None
    ) -> None:
        encoded = None if error is None else json.dumps(error)
        self._update(job_id, status=status, finished_at=time.time(), total_s=total_s, error=encoded)

    def add_picture(self, job_id: str, index: int, data: bytes, suffix: str, size_px: tuple[int, int]) -> Picture:
        """Write an encoded picture of (width, height) px. The same index again replaces it."""
        picture = Picture(index, f"{job_id}/{index}{suffix}", *size_px, len(data))
        with self._transaction():
            path = self.pictures_dir / picture.file
            path.parent.mkdir(exist_ok=True)
            write_whole(path, data)
            self._pictures.replace(  # type: ignore[no-untyped-call]
                job_id=job_id,
                image_index=index,
                file=picture.file,
                width_px=picture.width_px,
                height_px=picture.height_px,
                size_bytes=picture.size_bytes,
            ).execute()
        return picture

    def delete(self, job_id: str) -> None:
        """Row first: a kill in between leaves files without a row, which the next start removes."""
        with self._transaction():
            self._jobs.delete().where(self._jobs.c.id == job_id).execute()
        shutil.rmtree(self.pictures_dir / job_id, ignore_errors=True)

    def sweep(self, retention: Retention, now: float | None = None) -> int:
        """Delete the finished jobs that `retention` no longer covers. Returns how many."""
        expired = self._expired(retention, time.time() if now is None else now)
        for job_id in expired:
            self.delete(job_id)
        return len(expired)

    # -- reading

    def get(self, job_id: str) -> Job | None:
        found = self._read(self._jobs.c.id == job_id, limit=1)
        return found[0] if found else None

    def find(
        self,
        owner: str,
        *,
        search: str = "",
        status: str = "",
        with_pictures: bool = False,
        before: str = "",
        limit: int = 50,
    ) -> list[Job]:
        """Newest first. Every word of `search` must occur in the prompt or the seed; `before` is a job id."""
        columns = self._jobs.c
        where = columns.owner == owner
        words = search.casefold().split()
        if words:  # written flat: an expression nested once for each word is too deep for peewee, and for SQLite
            where &= peewee.SQL(" AND ".join(["instr(t1.search, ?) > 0"] * len(words)), words)
        if status:
            where &= columns.status == status
        if with_pictures:
            where &= peewee.SQL("EXISTS (SELECT 1 FROM pictures WHERE job_id = t1.id)")
        if before:
            # Bound by hand: a nested query of a bound table would run at once.
            where &= columns.number < peewee.SQL("(SELECT number FROM jobs WHERE id = ?)", (before,))
        return self._read(where, limit=limit)

    def unfinished(self) -> list[Job]:
        """Oldest first: what a restarted server has to run again."""
        return self._read(self._jobs.c.status.in_(UNFINISHED))[::-1]

    def path(self, picture: Picture) -> Path:
        return self.pictures_dir / picture.file

    # -- inside

    def _open(self) -> None:
        self._database.connect()
        self._execute("BEGIN EXCLUSIVE")  # takes the lock that locking_mode then keeps
        version = int(self._execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            for statement in (*SCHEMA, f"PRAGMA user_version = {SCHEMA_VERSION}"):
                self._execute(statement)
        self._execute("COMMIT")
        if version > SCHEMA_VERSION:
            raise peewee.DatabaseError(f"jobs.sqlite3 has schema {version}, this program knows {SCHEMA_VERSION}")
        self._remove_strays()

    def _remove_strays(self) -> None:
        """Files that a kill left without a row: of deleted jobs, or cut between file and row."""
        known = {row["file"] for row in self._pictures.select(self._pictures.c.file).dicts()}
        for directory in self.pictures_dir.iterdir():
            if not _DIRECTORY.fullmatch(directory.name) or not directory.is_dir():
                continue
            for path in directory.iterdir():
                if _FILE.fullmatch(path.name) and f"{directory.name}/{path.name}" not in known:
                    path.unlink(missing_ok=True)
            if not any(directory.iterdir()):
                directory.rmdir()

    def _execute(self, statement: str) -> Any:
        return self._database.execute_sql(statement)  # type: ignore[no-untyped-call]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._lock, self._database.atomic():
                yield
        except peewee.InterfaceError:
            raise NotReady("the server is shutting down; ask again when it is back", retry_after_s=5) from None
        except (OSError, peewee.DatabaseError, sqlite3.Error) as error:
            reason = _reason(error)
            log.error("storage: %s", reason)
            raise StorageError(f"{self._path.parent} could not be used: {reason}; free some space there") from error

    def _update(self, job_id: str, **values: Any) -> None:
        with self._transaction():
            self._jobs.update(**values).where(self._jobs.c.id == job_id).execute()

    def _read(self, where: Any, limit: int | None = None) -> list[Job]:
        with self._transaction():
            query = self._jobs.select().where(where).order_by(self._jobs.c.number.desc())
            rows = list((query if limit is None else query.limit(limit)).dicts())
            pictures = self._pictures_of([row["id"] for row in rows])
        return [_job(row, pictures.get(row["id"], ())) for row in rows]

    def _pictures_of(self, job_ids: list[str]) -> dict[str, tuple[Picture, ...]]:
        columns = self._pictures.c
        found: dict[str, tuple[Picture, ...]] = {}
        query = self._pictures.select().where(columns.job_id.in_(job_ids)).order_by(columns.job_id, columns.image_index)
        for row in query.dicts():
            picture = Picture(row["image_index"], row["file"], row["width_px"], row["height_px"], row["size_bytes"])
            found[row["job_id"]] = (*found.get(row["job_id"], ()), picture)
        return found

    def _expired(self, retention: Retention, now: float) -> list[str]:
        with self._transaction():
            rows = self._execute(
                "SELECT id, finished_at, (SELECT coalesce(sum(size_bytes), 0) FROM pictures WHERE job_id = jobs.id)"
                " FROM jobs WHERE status NOT IN ('queued', 'running') ORDER BY number DESC"
            ).fetchall()
        expired, kept_bytes = [], 0
        for count, (job_id, finished_at, size_bytes) in enumerate(rows, start=1):
            kept_bytes += size_bytes
            too_old = retention.max_age_s and now - finished_at > retention.max_age_s
            too_many = retention.max_jobs and count > retention.max_jobs
            too_big = retention.max_bytes and kept_bytes > retention.max_bytes
            if too_old or too_many or too_big:
                expired.append(job_id)
        return expired


def _reason(error: BaseException) -> BaseException:
    """SQLite undoes a transaction itself when the disk is full; peewee then fails to undo it, and says only that."""
    hidden = "no transaction is active" in str(error) and error.__context__ is not None
    return _reason(error.__context__) if hidden and error.__context__ else error


def _job(row: dict[str, Any], pictures: tuple[Picture, ...]) -> Job:
    fields = {name: row[name] for name in ("id", "owner", "status", "created_at", "started_at", "finished_at")}
    error = None if row["error"] is None else json.loads(row["error"])
    return Job(
        **fields,
        request=json.loads(row["request"]),
        queue_s=row["queue_s"],
        total_s=row["total_s"],
        error=error,
        pictures=pictures,
    )
