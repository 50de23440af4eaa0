"""The files of jobs: their pictures, and beside them a copy of the row, should the database be lost.

DATA_DIR/jobs/JOB/0.png            whole or absent; its row is written after it
DATA_DIR/jobs/JOB/job.json         the row, as it was submitted
DATA_DIR/jobs/JOB/image.given      a picture that it draws over, as it was sent; written before the row
DATA_DIR/jobs/JOB/mask.given       that one's mask
DATA_DIR/jobs/JOB.deleted/         a deletion that is under way
DATA_DIR/set-aside/TIME/JOB/0.png  what could not be explained
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from dalle_server.pictures.saving import remember_names, write_whole
from dalle_server.web.jobs.storage.records import JOB_ID

RECORD = "job.json"
GIVEN = ".given"
GIVEN_IMAGE, GIVEN_MASK = f"image{GIVEN}", f"mask{GIVEN}"
DELETED = ".deleted"
PICTURE_FILE = re.compile(r"(\d{1,10})\.(png|jpeg|webp)", re.ASCII)

# data_dir may be a directory that holds other things too: only what has a name of ours is ever touched.
_CUT_OFF = re.compile(r"\.(\d+\.(png|jpeg|webp)|job\.json|(image|mask)\.given)\.[0-9a-f]{8}\.tmp", re.ASCII)
_STORED = re.compile(rf"{JOB_ID.pattern}/({PICTURE_FILE.pattern}|{re.escape(RECORD)}|(image|mask)\.given)", re.ASCII)


class StoreAway(OSError):
    """The store does not answer, or not well: what was to be done may be done again."""


def stored_name(name: str) -> bool:
    """Whether this is the name of a file of ours."""
    return _STORED.fullmatch(name) is not None


class PictureFiles(Protocol):
    """Files by name: `JOB/0.png`, `JOB/job.json`. Any thread may call. Raise OSError when the store refuses."""

    def write(self, name: str, data: bytes) -> None:
        """Whole or absent, also when the machine stops in the middle."""
        ...

    def read(self, name: str) -> bytes: ...

    def has(self, name: str) -> bool: ...

    def jobs(self) -> Iterator[tuple[str, list[str]]]:
        """Every job that has files, with their names."""
        ...

    def changed_at(self, name: str) -> float: ...

    def delete_job(self, job_id: str) -> None:
        """All of a job's files. `forget_deleted` ends it, when the row is gone too."""
        ...

    def forget_deleted(self, job_id: str) -> None: ...

    def deleted(self) -> list[str]:
        """Jobs whose deletion was cut off between `delete_job` and `forget_deleted`."""
        ...

    def set_aside(self, name: str) -> str:
        """Move a file to where nobody looks for it; says where."""
        ...


class DirectoryFiles:
    """PictureFiles in a directory of this machine."""

    def __init__(self, data_dir: Path):
        """Creates it, for this user alone. Raises OSError."""
        data_dir = data_dir.absolute()
        self.root = data_dir / "jobs"
        self._aside = data_dir / "set-aside" / time.strftime("%Y%m%d-%H%M%S")
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a file lies. Raises FileNotFoundError for a name that is not ours or leads elsewhere."""
        path = self.root / name
        if not _STORED.fullmatch(name) or not path.resolve().is_relative_to(self.root.resolve()):
            raise FileNotFoundError(f"{name[:60]!r} is no file of a job")
        return path

    def write(self, name: str, data: bytes) -> None:
        path = self.path(name)
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            remember_names(self.root)
        write_whole(path, data)

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def has(self, name: str) -> bool:
        try:
            return self.path(name).is_file()
        except OSError:
            return False

    def changed_at(self, name: str) -> float:
        return self.path(name).stat().st_mtime

    def jobs(self) -> Iterator[tuple[str, list[str]]]:
        for directory in sorted(_entries(self.root), key=lambda entry: entry.name):  # a server may keep 10,000
            if not JOB_ID.fullmatch(directory.name) or not directory.is_dir(follow_symlinks=False):
                continue
            entries = _entries(directory.path)
            found = []
            for entry in entries:
                if _CUT_OFF.fullmatch(entry.name):  # a write that a kill has cut: nobody was told of it
                    Path(entry.path).unlink(missing_ok=True)
                elif _STORED.fullmatch(f"{directory.name}/{entry.name}") and entry.is_file():
                    found.append(f"{directory.name}/{entry.name}")
            if found:
                yield directory.name, sorted(found)
            elif not any(Path(directory.path).iterdir()):
                Path(directory.path).rmdir()

    def delete_job(self, job_id: str) -> None:
        """The name first, then the contents: from the first moment on it is known what this is."""
        directory, deleted = self._directory(job_id), self._deleted(job_id)
        if deleted.exists():
            shutil.rmtree(directory, ignore_errors=True)
        elif directory.exists():
            directory.rename(deleted)
        if deleted.exists():
            for path in deleted.iterdir():
                path.unlink(missing_ok=True)

    def forget_deleted(self, job_id: str) -> None:
        shutil.rmtree(self._deleted(job_id), ignore_errors=True)

    def deleted(self) -> list[str]:
        names = [path.name.removesuffix(DELETED) for path in self.root.iterdir() if path.name.endswith(DELETED)]
        return [name for name in names if JOB_ID.fullmatch(name)]

    def set_aside(self, name: str) -> str:
        target = self._aside / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path(name).rename(target)
        return str(self._aside)

    def _directory(self, job_id: str) -> Path:
        if not JOB_ID.fullmatch(job_id):
            raise FileNotFoundError(f"{job_id[:60]!r} is no job")
        return self.root / job_id

    def _deleted(self, job_id: str) -> Path:
        directory = self._directory(job_id)
        return directory.with_name(directory.name + DELETED)


def _entries(directory: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return list(entries)
