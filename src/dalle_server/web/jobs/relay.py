"""What one server tells of its jobs, heard by the others on the same PostgreSQL: LISTEN and NOTIFY.

Quick, but words get lost: PostgreSQL keeps none for a listener that is cut off, and a server may be killed before it
has told. What must not be lost is in the rows, where `sharing.py` looks. Previews stay where they are made: they are
larger than a notification may be.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, Full, Queue
from typing import Any

import sqlalchemy as sa

from dalle_server.errors import DalleServerError
from dalle_server.web.jobs.storage.database import Database

CHANNEL = "dalle_jobs"
MAX_BYTES = 7_900  # of a notification; PostgreSQL takes 8,000
MAX_QUEUED = 10_000  # while the database is away; of more, the others read the rows
PROGRESS_EVERY_S = 0.5
LOOK_S = 0.25
AGAIN_S = 1.0

logger = logging.getLogger(__name__)
Message = dict[str, Any]


class Relay:
    """Two threads, from `start` to `close`: one tells, one hears. `hear` gets what other servers have told; each time
    that this one begins to listen, `missed` is called: what they told before was not heard.
    """

    def __init__(self, database: Database, holder: str, hear: Callable[[Message], None], missed: Callable[[], None]):
        self._database, self._holder, self._hear, self._missed = database, holder, hear, missed
        self._queue: Queue[str] = Queue(MAX_QUEUED)
        self._untold: str | None = None  # the next one: a connection shows only when it is used that it was cut
        self._progress_at: dict[str, float] = {}
        self._stopping = threading.Event()

    def start(self) -> None:
        for name, work in (("jobs-tell", self._tell), ("jobs-hear", self._listen)):
            threading.Thread(target=self._again, args=(work,), name=name, daemon=True).start()

    def close(self) -> None:
        self._stopping.set()

    def tell(self, kind: str, job_id: str, **data: Any) -> None:
        """Never waits: what cannot be told is left out."""
        if kind == "progress":
            now = time.monotonic()
            if now - self._progress_at.get(job_id, 0.0) < PROGRESS_EVERY_S:
                return
            self._progress_at[job_id] = now
        else:
            self._progress_at.pop(job_id, None)
        text = json.dumps({"from": self._holder, "kind": kind, "job": job_id, **data})
        if len(text.encode()) <= MAX_BYTES:
            try:
                self._queue.put_nowait(text)
            except Full:
                logger.debug("a notification was left out")

    def _again(self, work: Callable[[sa.Connection], None]) -> None:
        told = False  # of this outage
        while not self._stopping.is_set():
            try:
                with self._database.autocommit() as connection:
                    told = False
                    work(connection)
            except Exception as error:  # the database is away, or goes on without this connection
                if not told and not self._stopping.is_set():
                    logger.warning("what other servers tell of jobs is not heard for now: %s", type(error).__name__)
                    told = True
                self._stopping.wait(AGAIN_S)

    def _tell(self, connection: sa.Connection) -> None:
        while not self._stopping.is_set():
            try:
                self._untold = self._untold or self._queue.get(timeout=LOOK_S)
            except Empty:
                continue
            connection.execute(sa.select(sa.func.pg_notify(CHANNEL, self._untold)))
            self._untold = None

    def _listen(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"LISTEN {CHANNEL}")
        self._missed()
        driver: Any = connection.connection.dbapi_connection
        while not self._stopping.is_set():
            for told in driver.notifies(timeout=LOOK_S):
                self._take(told.payload)

    def _take(self, payload: str) -> None:
        try:
            message = json.loads(payload)
            if message["from"] != self._holder:
                self._hear(message)
        except DalleServerError as error:  # the database does not answer just now
            logger.debug("a notification came to nothing: %s", error.message)
        except Exception:  # another program's word on our channel, or of a newer server
            logger.exception("a notification was not understood")
