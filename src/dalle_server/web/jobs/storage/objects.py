"""PictureFiles in an object store (S3 and what speaks like it), through obstore: servers on several machines share it.

PREFIX/jobs/JOB/0.png           an object is written whole or not at all
PREFIX/deleted/JOB              a deletion that is under way
PREFIX/set-aside/TIME/JOB/0.png what could not be explained

Address and keys are where every program finds them: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL, or the machine's own role.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby

import obstore
from obstore import exceptions
from obstore.store import from_url

from dalle_server.web.jobs.storage.files import StoreAway, stored_name
from dalle_server.web.jobs.storage.records import JOB_ID

TIMEOUT_S = 10.0  # of one call, its repetitions included
REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, exceptions.NotSupportedError)


class ObjectFiles:
    """PictureFiles under a prefix of a bucket. Raises FileNotFoundError, StoreAway, and OSError for what it refuses."""

    def __init__(self, url: str):
        """s3://BUCKET or s3://BUCKET/PREFIX. Raises OSError for an address that cannot be used."""
        is_plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        with _told(url):
            self._store = from_url(
                url,
                client_options={"allow_http": is_plain, "timeout": timedelta(seconds=TIMEOUT_S)},
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=TIMEOUT_S)},
            )
        self._aside = f"set-aside/{time.strftime('%Y%m%d-%H%M%S')}"

    def write(self, name: str, data: bytes) -> None:
        with _told(name):
            obstore.put(self._store, _key(name), data)

    def read(self, name: str) -> bytes:
        with _told(name):
            return bytes(obstore.get(self._store, _key(name)).bytes())

    def has(self, name: str) -> bool:
        try:
            self.changed_at(name)
        except FileNotFoundError:
            return False
        return True

    def changed_at(self, name: str) -> float:
        with _told(name):
            return obstore.head(self._store, _key(name))["last_modified"].timestamp()

    def jobs(self) -> Iterator[tuple[str, list[str]]]:
        names = (key.removeprefix("jobs/") for key in self._keys("jobs"))
        for job_id, found in groupby(names, key=lambda name: name.split("/")[0]):
            stored = [name for name in found if stored_name(name)]
            if stored:
                yield job_id, stored

    def delete_job(self, job_id: str) -> None:
        """The mark first: from the first moment on it is known what this is."""
        _check(job_id)
        with _told(job_id):
            obstore.put(self._store, f"deleted/{job_id}", b"")
            keys = list(self._keys(f"jobs/{job_id}"))
            if keys:
                obstore.delete(self._store, keys)

    def forget_deleted(self, job_id: str) -> None:
        _check(job_id)
        with _told(job_id):
            obstore.delete(self._store, f"deleted/{job_id}")

    def deleted(self) -> list[str]:
        return [name for key in self._keys("deleted") if JOB_ID.fullmatch(name := key.removeprefix("deleted/"))]

    def set_aside(self, name: str) -> str:
        with _told(name):
            obstore.rename(self._store, _key(name), f"{self._aside}/{name}")
        return self._aside

    def _keys(self, prefix: str) -> Iterator[str]:
        """Sorted, as S3 lists them."""
        with _told(prefix):
            for some in obstore.list(self._store, prefix, chunk_size=1000):
                yield from (each["path"] for each in some)


def _key(name: str) -> str:
    if not stored_name(name):
        raise FileNotFoundError(f"{name[:60]!r} is no file of a job")
    return f"jobs/{name}"


def _check(job_id: str) -> None:
    if not JOB_ID.fullmatch(job_id):
        raise FileNotFoundError(f"{job_id[:60]!r} is no job")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The library's errors as those of a file system. What it says of a request is not for clients."""
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError):
        raise FileNotFoundError(f"{what[:60]!r} is not in the picture store") from None
    except REFUSED as error:
        raise OSError("the picture store refuses; look at its keys and rights") from error
    except (exceptions.BaseError, TimeoutError) as error:
        raise StoreAway("the picture store does not answer") from error
