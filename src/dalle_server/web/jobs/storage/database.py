"""Connections to the jobs database on which no call outlives its deadline.

SQLite: one writer at a time, readers beside it (WAL), one server for each file. PostgreSQL: any number of servers.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy as sa

from dalle_server.errors import DalleServerError, DeadlineExceeded, NotReady, Overloaded, StorageError, first_line
from dalle_server.web.jobs.storage.schema import prepare

DEADLINE_S = 5.0  # of one transaction
# Of a PostgreSQL whose machine has vanished: by itself the kernel would go on sending for a quarter of an hour. A quiet
# statement is not cut off: these count what is not acknowledged.
LOST_AFTER = {"tcp_user_timeout": 5000, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
SEARCH_DEADLINE_S = 2.0
READERS = 5
STEPS_BETWEEN_LOOKS = 2_000  # of SQLite's machine: well under a millisecond

GONE = "data_dir has gone while the server ran; bring it back, or restart the server to begin a new one"

log = logging.getLogger(__name__)


class InUse(Exception):
    """Another server has this database."""


class Damaged(Exception):
    """The file is no database any more."""


class _Watch:
    """Of one connection to SQLite: until when its present call may run, and whether anyone still wants it."""

    def __init__(self) -> None:
        self.ends_at = float("inf")
        self.is_unwanted: Callable[[], bool] = lambda: False

    def __call__(self) -> bool:
        """True stops the call."""
        return time.monotonic() > self.ends_at or self.is_unwanted()


class Database:
    """Transactions, from any thread. Raises StorageError when the disk refuses, DeadlineExceeded, and NotReady
    when it is closed or does not answer.
    """

    def __init__(self, url: str | sa.URL):
        """Opens, creates or migrates it. Raises InUse, Damaged, TooNew, OSError, sqlalchemy's DBAPIError."""
        self.url = sa.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._closed = False
        self._writer = threading.Lock()
        self._path = Path(self.url.database or "") if self.is_sqlite else None
        self._lock = None if self._path is None else _own(self._path)
        # Statements hold prompts: neither an error nor the library's own log may tell them.
        logging.getLogger("sqlalchemy").setLevel(logging.WARNING)
        pool = {"pool_size": READERS, "max_overflow": 1, "pool_timeout": DEADLINE_S}
        self._engine = sa.create_engine(self.url, hide_parameters=True, **pool, **self._options())
        if self.is_sqlite:
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._opened: tuple[int, int] | None = None
        self._reading = self._engine.execution_options(reading=True)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise
        self._opened = self._identity()

    def _options(self) -> dict[str, Any]:
        if self.is_sqlite:
            return {"connect_args": {"check_same_thread": False, "timeout": 1.0}}
        asked = {"connect_timeout": int(DEADLINE_S), **LOST_AFTER}
        return {
            "pool_pre_ping": True,
            "connect_args": {name: value for name, value in asked.items() if name not in self.url.query},
        }

    def _prepare(self) -> None:
        try:
            with self._engine.begin() as connection:
                if self.is_sqlite:
                    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                    if found != "ok":
                        raise Damaged(str(found))
                prepare(connection)
        except sa.exc.DBAPIError as error:
            if _is_damage(error):
                raise Damaged(str(error.orig)) from error
            if "locked" in str(error.orig):
                raise InUse(str(error.orig)) from error
            raise

    @property
    def is_there(self) -> bool:
        """Whether the file is still where it was opened: a directory may be deleted or unmounted under a server."""
        return self._identity() == self._opened

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = None if self._path is None else self._path.stat()
        except OSError:
            return None
        return (0, 0) if found is None else (found.st_dev, found.st_ino)

    @contextmanager
    def reading(
        self, *, deadline_s: float = DEADLINE_S, is_unwanted: Callable[[], bool] = lambda: False
    ) -> Iterator[sa.Connection]:
        """A transaction that sees one moment; it stops soon after `is_unwanted()` says so."""
        with self._told(), self._transaction(self._reading, deadline_s, is_unwanted) as connection:
            yield connection

    @contextmanager
    def writing(self, *, deadline_s: float = DEADLINE_S) -> Iterator[sa.Connection]:
        """A transaction that is all there, also after a power cut, or not at all."""
        with self._told():
            if self.is_sqlite and not self._writer.acquire(timeout=deadline_s):
                raise DeadlineExceeded("the jobs database is busy; try again")
            try:
                with self._transaction(self._engine, deadline_s, lambda: False) as connection:
                    yield connection
            finally:
                if self.is_sqlite:
                    self._writer.release()

    @contextmanager
    def autocommit(self) -> Iterator[sa.Connection]:
        """A connection of the caller's own, outside the pool, without transactions. Raises what the library does."""
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        try:
            yield connection
        finally:
            connection.close()

    def close(self) -> None:
        """Stops what is running in it; later calls raise NotReady."""
        self._closed = True
        self._engine.dispose()
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _transaction(
        self, engine: sa.Engine, deadline_s: float, is_unwanted: Callable[[], bool]
    ) -> Iterator[sa.Connection]:
        if self._closed:
            raise NotReady("the server is shutting down; ask again when it is back", retry_after_s=5)
        if not self.is_there and self._opened is not None:
            raise StorageError(GONE)
        with engine.connect() as connection:
            watch = connection.info.get("watch")
            if watch is not None:
                watch.ends_at = time.monotonic() + deadline_s
                watch.is_unwanted = lambda: self._closed or is_unwanted()
            with connection.begin():
                if watch is None:
                    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(deadline_s * 1000)}")
                try:
                    yield connection
                finally:
                    if watch is not None:  # the end of the transaction is not to be cut in two
                        watch.ends_at, watch.is_unwanted = float("inf"), lambda: False

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the library and the disk in our terms. No path leaves in them."""
        try:
            yield
        except sa.exc.TimeoutError:
            raise Overloaded("the jobs database is busy; try again", retry_after_s=2) from None
        except (sa.exc.DBAPIError, sqlite3.Error, OSError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> DalleServerError:
        reason = first_line(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
        if self._closed:
            return NotReady("the server is shutting down; ask again when it is back", retry_after_s=5)
        if "interrupted" in reason or "statement timeout" in reason:
            return DeadlineExceeded("the jobs database took too long; ask for less, or search for longer words")
        log.error("jobs database: %s", reason)
        if not self.is_sqlite and isinstance(error, sa.exc.IntegrityError | sa.exc.DataError):
            return StorageError("the jobs database refuses this; the job was perhaps deleted meanwhile")
        if not self.is_sqlite:
            return NotReady("the jobs database does not answer; try again shortly", retry_after_s=5)
        if not self.is_there:
            return StorageError(GONE)
        if _is_damage(error):
            return StorageError(
                "the jobs database is damaged; restart the server: it starts a new one from the pictures"
            )
        remedy = "free some space there" if is_full(reason) else "see that the server can write there"
        return StorageError(f"data_dir could not be used: {reason}; {remedy}")


def _own(path: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InUse("it is locked") from None
    return lock


def _set_up_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # the library sends no BEGIN of its own: _begin_sqlite does
    watch = record.info["watch"] = _Watch()
    connection.set_progress_handler(watch, STEPS_BETWEEN_LOOKS)
    # FULL: a 202 means that the job survives a power cut as well.
    for pragma in ("journal_mode = wal", "synchronous = full", "foreign_keys = 1"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    """A writer takes its turn at once: one that read first would find the file changed when it writes."""
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def is_full(reason: str) -> bool:
    return any(words in reason.lower() for words in ("no space left", "disk is full", "quota exceeded", "disk quota"))


def _is_damage(error: BaseException) -> bool:
    text = str(getattr(error, "orig", error))
    return any(words in text for words in ("malformed", "not a database", "database disk image"))


def set_aside(path: Path) -> Path:
    """Move a damaged database and its journal out of the way; the new name. Raises OSError."""
    kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{kept}{suffix}")
    return kept
