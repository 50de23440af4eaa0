"""The store: what it keeps, what it forgets, and that a kill or a full disk at any moment leaves it whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dalle_server.errors import ConfigError, NotReady, StorageError
from dalle_server.web.jobs.storage import files
from dalle_server.web.jobs.storage.records import UNFINISHED, JobPicture
from dalle_server.web.jobs.storage.retention import Retention
from dalle_server.web.jobs.storage.store import Store
from tests.web.jobs.store_help import finished, ids, job, picture_bytes, root_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_job_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    made = job(1)
    store.add(made)
    store.rows.update(made.id, status="running", queue_s=0.25)
    store.add_picture(made, 1, b"second", (16, 8))
    store.add_picture(made, 0, b"first", (16, 8))
    store.rows.update(made.id, status="failed", error={"message": "why"})
    store.close()
    found = Store(tmp_path).rows.get("job-1")
    assert found is not None
    assert (found.status, found.queue_s, found.error) == ("failed", 0.25, {"message": "why"})
    assert found.request == made.request
    assert [(picture.index, picture.width_px, picture.size_bytes) for picture in found.pictures] == [
        (0, 16, 5), (1, 16, 6),
    ]  # fmt: skip
    assert (tmp_path / "jobs" / found.pictures[0].file).read_bytes() == b"first"


def test_unfinished_jobs_are_taken_up_in_the_order_of_submission(store: Store) -> None:
    for number in (3, 1, 2):
        store.add(job(number, owner=f"key:{number}"))
    store.rows.update("job-1", status="running", started_at=5.0)
    store.rows.update("job-3", status="cancelled")
    taken = store.rows.take_up()
    assert [(each.id, each.status, each.started_at) for each in taken] == [
        ("job-1", "queued", None),
        ("job-2", "queued", None),
    ]
    assert [each.request.client for each in taken] == ["key:1", "key:2"]


def test_deleting_a_job_removes_its_pictures(store: Store) -> None:
    finished(store, 1)
    store.delete("job-1")
    assert store.rows.get("job-1") is None
    assert list(root_of(store).iterdir()) == []


def test_a_second_server_on_the_same_directory_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another server uses it"):
        Store(tmp_path)


def test_a_late_request_does_not_open_a_closed_store_again(store: Store, tmp_path: Path) -> None:
    store.close()
    with pytest.raises(NotReady, match="shutting down"):
        ids(store)
    with pytest.raises(NotReady):
        store.add(job(1))
    with pytest.raises(NotReady):
        store.sweep(Retention())
    Store(tmp_path).close()  # and the next server has it for itself


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="choose a directory that can be written"):
        Store(tmp_path / "data")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(ConfigError, match="choose a directory that can be written"):
        Store(tmp_path / "data")


def test_the_directory_is_for_its_user_alone(tmp_path: Path) -> None:
    Store(tmp_path / "data")
    assert (tmp_path / "data" / "jobs").stat().st_mode & 0o077 == 0


def test_what_others_keep_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    """`--data_dir ~` must not cost anyone their ~/jobs."""
    theirs = [tmp_path / "jobs" / name for name in ("acme/letter.pdf", "acme/0.png", "job-1/cv.pdf", "none")]
    for path in theirs[:-1]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    theirs[-1].mkdir()
    Store(tmp_path)
    assert all(path.exists() for path in theirs)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_neither_file_nor_row(store: Store, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store.add(job(1))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        monkeypatch.setattr(files, "write_whole", refuse)
    else:
        monkeypatch.setattr(os if call == "fsync" else Path, call, refuse)
    with pytest.raises(StorageError, match="No space left") as refused:
        store.add_picture(job(1), 0, b"data", (8, 8))
    assert str(root_of(store).parent) not in refused.value.message
    found = store.rows.get("job-1")
    assert found is not None
    assert found.pictures == ()
    assert not [path for path in root_of(store).rglob("*") if path.is_file()]


def squeeze(store: Store) -> None:
    """No page more than there are: SQLite finds its disk full."""
    for _ in range(8):  # of every connection of the pool
        with store.rows.database.writing() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")


def test_a_full_database_says_so_without_a_path(store: Store, tmp_path: Path) -> None:
    squeeze(store)
    with pytest.raises(StorageError, match="full") as refused:
        store.add(job(1, prompt="long " * 2_000))
    assert str(tmp_path) not in refused.value.message
    assert store.rows.get("job-1") is None


def test_a_job_is_deleted_on_a_full_disk_and_makes_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database takes nothing more, until the pictures have made room."""
    finished(store, 1, num_pictures=2)
    delete = store.rows.delete

    def refuse_while_full(job_ids: tuple[str, ...]) -> None:
        if any(path.is_file() for path in root_of(store).rglob("*")):
            raise StorageError("the disk is full")
        delete(job_ids)

    monkeypatch.setattr(store.rows, "delete", refuse_while_full)
    store.delete("job-1")
    assert store.rows.get("job-1") is None
    assert list(root_of(store).iterdir()) == []


def test_a_deletion_that_was_cut_off_is_ended_at_the_next_start(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(store, 1)
    finished(store, 2)

    def die(*_: object) -> None:
        raise StorageError("still full")

    monkeypatch.setattr(store.rows, "delete", die)
    with pytest.raises(StorageError):
        store.delete("job-1")
    store.close()
    again = Store(tmp_path)
    assert ids(again) == ["job-2"]
    assert names(tmp_path / "jobs") == ["job-2/0.png", "job-2/job.json"]


def test_a_data_dir_that_went_away_takes_no_job(store: Store, tmp_path: Path) -> None:
    finished(store, 1)
    shutil.rmtree(tmp_path)
    with pytest.raises(StorageError, match="has gone"):
        store.add(job(2))


@pytest.mark.parametrize(
    "name",
    ["../../../../etc/hostname", "/etc/hostname", "job-1/../../secret", "job-1/secret.txt", "job-1", "job-1/0.png/.."],
)
def test_no_row_names_a_file_outside_the_store(store: Store, tmp_path: Path, name: str) -> None:
    finished(store, 1)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "jobs" / "job-1" / "secret.txt").write_text("secret")
    assert store.read(JobPicture(0, name, 8, 8, 5)) is None


def test_a_link_out_of_the_store_is_not_followed(store: Store, tmp_path: Path) -> None:
    finished(store, 1)
    (tmp_path / "secret").write_text("secret")
    path = tmp_path / "jobs" / "job-1" / "0.png"
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    assert store.read(JobPicture(0, "job-1/0.png", 8, 8, 5)) is None


WRITER = """
import sys
from pathlib import Path
from dalle_server.web.jobs.storage.store import Store
from tests.web.jobs.store_help import finished, ids, root_of
store = Store(Path(sys.argv[1]))
first = int(sys.argv[2])
print("ready", flush=True)
for number in range(first, first + 100000):
    finished(store, number, seed=number)
    if number % 5 == 4:
        store.delete(f"job-{number - 2}")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_killed_while_saving_every_listed_picture_is_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    jobs = 0
    for round in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(round * 100_000)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.031 * round)
        process.kill()
        process.wait()
        process.stdout.close()
        store = Store(tmp_path)
        found = list(store.rows.all())
        listed = {picture.file: each for each in found for picture in each.pictures}
        assert {name for name in names(root_of(store)) if not name.endswith(".json")} == set(listed)
        for name, each in listed.items():
            assert (root_of(store) / name).read_bytes() == picture_bytes(each, 0)
        assert all(each.pictures for each in found if each.status not in UNFINISHED)
        assert not (tmp_path / "set-aside").exists()
        jobs = len(found)
        store.close()
    assert jobs > 6
