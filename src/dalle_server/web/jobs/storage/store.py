"""What lasts of a job: its row and the files of its pictures, kept in step.

A file is written before its row and deleted before it, so that a full disk can always be emptied; a kill in between
is put right when the store opens.
"""

from __future__ import annotations

import errno
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from dalle_server.errors import (
    ConfigError,
    DalleServerError,
    DeadlineExceeded,
    NotReady,
    Overloaded,
    StorageError,
    first_line,
)
from dalle_server.web.jobs.storage.database import Damaged, Database, InUse, is_full, set_aside
from dalle_server.web.jobs.storage.files import GIVEN_IMAGE, GIVEN_MASK, RECORD, PictureFiles, StoreAway
from dalle_server.web.jobs.storage.given import Given
from dalle_server.web.jobs.storage.leases import Leases
from dalle_server.web.jobs.storage.places import open_files
from dalle_server.web.jobs.storage.records import Job, JobPicture
from dalle_server.web.jobs.storage.repair import finish_deletions, record_of, repair
from dalle_server.web.jobs.storage.retention import Retention, SteadyClock, expired
from dalle_server.web.jobs.storage.rows import JobRows
from dalle_server.web.jobs.storage.schema import TooNew
from dalle_server.words import expanded

AT_ONCE = 50  # jobs that one sweep deletes: others wait for the disk meanwhile
PROBE_BYTES = 64 * 1024
CLOCK = "clock"  # the note of what SteadyClock showed last

log = logging.getLogger(__name__)


class Store:
    """All methods may be called from any thread. Raise StorageError when the disk refuses."""

    def __init__(
        self, data_dir: Path, database: str | None = None, pictures: str | None = None, *, lease_s: float = 30.0
    ):
        """Opens it, and puts right what a kill, a lost file or a damaged database left behind. `database` None: a file
        in data_dir. One that servers share is not compared with the files, which others are writing. `pictures` is the
        address of their store; None: data_dir.

        Raises ConfigError when the directory or the database can never be used (not a directory, unwritable, newer,
        another server's), StorageError when there is no room now, or the database does not answer.
        """
        self.leases: Leases | None = None
        self._place = "data_dir" if pictures is None else "picture_store"
        try:
            self.files: PictureFiles = open_files(pictures, data_dir)
            if database is not None and sa.make_url(database).get_backend_name() != "sqlite":
                self._share(database, lease_s)
            else:
                self.rows = _open(data_dir / "jobs.sqlite3" if database is None else _file_of(database))
        except InUse:
            raise _unusable(data_dir, "another server uses it; choose another directory, or stop that server") from None
        except TooNew as error:
            raise _unusable(data_dir, f"{error}; run the newer program, or choose another directory") from None
        except (OSError, sa.exc.DBAPIError) as error:
            reason = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
            if is_full(reason) or not has_room(data_dir):
                raise StorageError(f"data_dir is full ({reason}); free some space there") from error
            raise _unusable(data_dir, f"{reason}; choose a directory that can be written") from error
        try:
            with self._disk():
                (repair if self.leases is None else finish_deletions)(self.rows, self.files)
            self._clock = SteadyClock(self._newest(), time.time(), time.monotonic())
        except BaseException:
            self.rows.close()
            raise
        self._sweeping = threading.Lock()

    def _share(self, url: str, lease_s: float) -> None:
        try:
            database = Database(_with_driver(url))
            self.leases = Leases(database, lease_s)
            self.rows = JobRows(database, self.leases.holder)
        except (sa.exc.DBAPIError, DalleServerError) as error:
            reason = first_line(getattr(error, "orig", None) or error)
            raise StorageError(f"the database does not answer ({reason}); it is asked again") from error
        except TooNew as error:
            raise ConfigError(f"{error}; run the newer program (--database)", param="database") from None
        except ImportError as error:
            raise ConfigError(f"{error}: pip install 'dalle-server[cluster]' (--database)", param="database") from None

    def take_up(self) -> list[Job]:
        """The unfinished jobs that this server goes on with, now that it starts."""
        if self.leases is None:
            return self.rows.take_up()
        self.leases.beat()  # the others' are taken over when their leases have ended
        return []

    def close(self) -> None:
        self.rows.close()

    def add(self, job: Job) -> None:
        self.rows.add(job)

    def add_given(self, job: Job, given: Given) -> None:
        """Keep the files that a job draws over, before its row."""
        try:
            with self._disk():
                self.files.write(f"{job.id}/{GIVEN_IMAGE}", given.image)
                if given.mask is not None:
                    self.files.write(f"{job.id}/{GIVEN_MASK}", given.mask)
        except StorageError:
            self.drop_given(job)
            raise

    def drop_given(self, job: Job) -> None:
        """Of a job that was not accepted after all."""
        with suppress(OSError):
            self.files.delete_job(job.id)
            self.files.forget_deleted(job.id)

    def given(self, job: Job) -> Given | None:
        """The files that the job draws over. Raises StorageError when they have gone."""
        if job.over is None:
            return None
        image, mask = self.given_file(job, GIVEN_IMAGE), self.given_file(job, GIVEN_MASK)
        if image is None or (mask is None and job.over.has_mask_file):
            raise StorageError(f"the picture that job {job.id} draws over has gone from the store; send it again")
        return Given(image, mask)

    def given_file(self, job: Job, name: str) -> bytes | None:
        """GIVEN_IMAGE or GIVEN_MASK as it was sent; None where there was none, or it has gone."""
        if job.over is None or (name == GIVEN_MASK and not job.over.has_mask_file):
            return None
        return self._read(f"{job.id}/{name}")

    def add_picture(
        self,
        job: Job,
        index: int,
        data: bytes,
        size_px: tuple[int, int],
        *,
        noise: int | None = None,
        score: float | None = None,
    ) -> JobPicture:
        """Keep an encoded picture of (width, height) px; `noise` and `score` of one that was chosen of many. The same
        index again replaces it.
        """
        picture = JobPicture(index, f"{job.id}/{index}.{job.format}", *size_px, len(data), noise, score)
        with self._disk():
            record = f"{job.id}/{RECORD}"
            if not self.files.has(record):
                self.files.write(record, record_of(job))
            self.files.write(picture.file, data)
        self.rows.put_picture(job.id, picture)
        return picture

    def read(self, picture: JobPicture) -> bytes | None:
        """The file; None when it has gone (see `forget`)."""
        return self._read(picture.file)

    def _read(self, name: str) -> bytes | None:
        with self._disk():
            try:
                return self.files.read(name)
            except FileNotFoundError:
                return None

    def forget(self, job: Job, picture: JobPicture) -> None:
        """The file of a picture has gone: its row goes too."""
        self.rows.drop_pictures(job.id, [picture.index])

    def delete(self, *job_ids: str) -> None:
        """Files first: that works on a full disk as well, and makes room for what is written into the database."""
        with self._disk():
            for job_id in job_ids:
                self.files.delete_job(job_id)
        self.rows.delete(job_ids)
        with suppress(OSError):
            for job_id in job_ids:
                self.files.forget_deleted(job_id)

    def sweep(self, retention: Retention, now: float | None = None) -> int:
        """Delete finished jobs that `retention` no longer covers, AT_ONCE at most. Returns how many.

        `now` is by the steady clock, if it is not given.
        """
        with self._sweeping:
            now = self._clock.now(time.time(), time.monotonic()) if now is None else now
            doomed = expired(self.rows.finished(), retention, now)[:AT_ONCE]
            self.delete(*doomed)
            with suppress(StorageError, DeadlineExceeded, Overloaded):
                self.rows.remember(CLOCK, now)
        return len(doomed)

    def is_over(self, retention: Retention) -> bool:
        """Whether there is more than is kept: a question that costs little."""
        num_jobs, num_bytes = self.rows.totals()
        return (0 < retention.max_jobs < num_jobs) or (0 < retention.max_bytes < num_bytes)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            log.error("pictures of jobs: %s", reason)
            if isinstance(error, StoreAway):
                raise NotReady(f"{reason}; try again shortly", retry_after_s=5) from error
            remedy = "free some space there" if is_full(reason) else "see that the server can write there"
            raise StorageError(f"{self._place} could not be used: {reason}; {remedy}") from error

    def _newest(self) -> float | None:
        """The latest moment that is not in the future and that rows or notes know of."""
        times = [self.rows.note(CLOCK)]
        times += [job.finished_at for job in self.rows.finished()]
        known = [moment for moment in times if moment is not None and moment <= time.time()]
        return max(known, default=None)


def has_room(directory: Path) -> bool:
    """Whether a little more can be written there: SQLite calls some of its ways to fail on a full disk an I/O error."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
    except OSError as error:
        return error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    return True


def _open(path: Path) -> JobRows:
    url = sa.URL.create("sqlite", database=str(path.absolute()))
    try:
        return JobRows.open(url)
    except Damaged as error:
        kept = set_aside(path)
        log.error("the jobs database was damaged (%s): moved to %s; a new one is made from the pictures", error, kept)
        return JobRows.open(url)


def _file_of(database: str) -> Path:
    return expanded(sa.make_url(database).database or "jobs.sqlite3")


def _with_driver(url: str) -> sa.URL:
    """`postgresql://` as people write it, for the driver that we install."""
    found = sa.make_url(url)
    return found.set(drivername="postgresql+psycopg") if found.drivername in ("postgresql", "postgres") else found


def _unusable(data_dir: Path, reason: str) -> ConfigError:
    return ConfigError(f"data_dir {data_dir}: {reason} (--data_dir)", param="data_dir")
