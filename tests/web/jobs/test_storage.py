"""The store: what it keeps, what it forgets, and that a kill at any moment leaves it whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dalle_server.errors import ConfigError, NotReady, StorageError
from dalle_server.pictures import saving
from dalle_server.web.jobs import storage
from dalle_server.web.jobs.storage import Job, Retention, Store


def job(number: int, *, owner: str = "", prompt: str = "a red apple", seed: int = 7) -> Job:
    request = {"prompt": prompt, "seed": seed, "num_images": 2}
    return Job(id=f"job-{number}", owner=owner, status="queued", request=request, created_at=1000.0 + number)


def finished(store: Store, number: int, data: bytes = b"x" * 10, **kw: Any) -> None:
    store.add(job(number, **kw))
    store.add_picture(f"job-{number}", 0, data, ".png", (8, 8))
    store.finish(f"job-{number}", "done", total_s=1.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_job_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    store.add(job(1))
    store.start("job-1", 0.25)
    store.add_picture("job-1", 1, b"second", ".png", (16, 8))
    store.add_picture("job-1", 0, b"first", ".png", (16, 8))
    store.finish("job-1", "failed", error={"message": "why"})
    store.close()
    found = Store(tmp_path).get("job-1")
    assert found is not None
    assert (found.status, found.queue_s, found.error) == ("failed", 0.25, {"message": "why"})
    assert found.request == job(1).request
    assert [(picture.index, picture.width_px, picture.size_bytes) for picture in found.pictures] == [
        (0, 16, 5), (1, 16, 6),
    ]  # fmt: skip
    assert (tmp_path / "jobs" / found.pictures[0].file).read_bytes() == b"first"


def test_lists_newest_first_by_page_owner_and_search(store: Store) -> None:
    for number in range(5):
        finished(store, number, prompt=f"Ein ÄPFEL number{number} 100%", seed=40 + number)
    finished(store, 9, owner="other")
    assert [each.id for each in store.find("")] == ["job-4", "job-3", "job-2", "job-1", "job-0"]
    assert [each.id for each in store.find("", limit=2)] == ["job-4", "job-3"]
    assert [each.id for each in store.find("", before="job-3", limit=2)] == ["job-2", "job-1"]
    assert [each.id for each in store.find("other")] == ["job-9"]
    assert [each.id for each in store.find("", search="äpfel number2")] == ["job-2"]
    assert [each.id for each in store.find("", search="43")] == ["job-3"]
    assert len(store.find("", search="100%")) == 5
    assert store.find("", search="_pfel") == []
    assert len(store.find("", search="e " * 499 + "NUMBER")) == 5
    assert store.find("", status="queued") == []


def test_lists_only_jobs_with_pictures_when_asked(store: Store) -> None:
    finished(store, 1)
    store.add(job(2))
    store.finish("job-2", "cancelled")
    assert [each.id for each in store.find("", with_pictures=True)] == ["job-1"]
    assert [each.id for each in store.find("", with_pictures=True, before="job-2")] == ["job-1"]


def test_unfinished_jobs_are_in_the_order_of_submission(store: Store) -> None:
    for number in (3, 1, 2):
        store.add(job(number))
    store.start("job-1", 0.0)
    store.finish("job-3", "cancelled")
    assert [(each.id, each.status) for each in store.unfinished()] == [("job-1", "running"), ("job-2", "queued")]
    store.requeue("job-1")
    assert [(each.status, each.started_at) for each in store.unfinished()] == [("queued", None)] * 2


def test_deleting_a_job_removes_its_pictures(store: Store) -> None:
    finished(store, 1)
    store.delete("job-1")
    assert store.get("job-1") is None
    assert list(store.pictures_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(), {"job-0", "job-1", "job-2", "job-3"}),
        (Retention(max_jobs=2), {"job-2", "job-3"}),
        (Retention(max_bytes=35), {"job-1", "job-2", "job-3"}),
        (Retention(max_age_s=60), set()),
    ],
)
def test_retention_deletes_the_oldest_finished_jobs(store: Store, retention: Retention, kept: set[str]) -> None:
    for number in range(4):
        finished(store, number)
    store.add(job(8))  # unfinished: never swept
    removed = store.sweep(retention, now=time.time() + 100)
    assert {each.id for each in store.find("")} == kept | {"job-8"}
    assert removed == 4 - len(kept)
    assert {path.name for path in store.pictures_dir.iterdir()} == kept


def test_a_second_server_on_the_same_directory_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another server uses it"):
        Store(tmp_path)


def test_a_late_request_does_not_open_a_closed_store_again(store: Store, tmp_path: Path) -> None:
    store.close()
    with pytest.raises(NotReady, match="shutting down"):
        store.find("")
    with pytest.raises(NotReady):
        store.add(job(1))
    with pytest.raises(NotReady):
        store.sweep(Retention())
    Store(tmp_path).close()  # and the next server has it for itself


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store._execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(ConfigError, match="schema 99"):
        Store(tmp_path)


def test_files_without_a_row_go_when_the_store_opens(store: Store, tmp_path: Path) -> None:
    finished(store, 1)
    stray = tmp_path / "jobs" / "job-2"
    stray.mkdir()
    (stray / "0.png").write_bytes(b"cut off")
    (tmp_path / "jobs" / "job-1" / ".1.png.0123abcd.tmp").write_bytes(b"half")
    store.close()
    Store(tmp_path)
    assert sorted(path.name for path in (tmp_path / "jobs").rglob("*")) == ["0.png", "job-1"]


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
        monkeypatch.setattr(storage, "write_whole", refuse)
    else:
        monkeypatch.setattr(saving.os if call == "fsync" else Path, call, refuse)  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="No space left"):
        store.add_picture("job-1", 0, b"data", ".png", (8, 8))
    found = store.get("job-1")
    assert found is not None
    assert found.pictures == ()
    assert not [path for path in store.pictures_dir.rglob("*") if path.is_file()]


def test_a_full_database_says_that_it_is_full(store: Store) -> None:
    store._execute("PRAGMA max_page_count = 1")  # SQLite raises it to the pages there are
    with pytest.raises(StorageError, match="disk is full"):
        store.add(job(1, prompt="long " * 10_000))
    store._execute("PRAGMA max_page_count = 1000000")
    store.add(job(1))
    assert store.get("job-1") is not None


WRITER = """
import sys
from pathlib import Path
from dalle_server.web.jobs.storage import Store
from tests.web.jobs.test_storage import job
store = Store(Path(sys.argv[1]))
first = len(store.find("", limit=100000))
print("ready", flush=True)
for number in range(first, first + 100000):
    store.add(job(number))
    store.add_picture(f"job-{number}", 0, b"%06d" % number * 5000, ".png", (8, 8))
    store.finish(f"job-{number}", "done")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_killed_while_saving_every_listed_picture_is_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for round in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.013 * round)
        process.kill()
        process.wait()
        process.stdout.close()
        store = Store(tmp_path)
        jobs = store.find("", limit=100_000)
        listed = {store.path(picture): each for each in jobs for picture in each.pictures}
        assert {path for path in store.pictures_dir.rglob("*") if path.is_file()} == set(listed)
        for path, each in listed.items():
            assert path.read_bytes() == b"%06d" % int(each.id.removeprefix("job-")) * 5000
        assert all(each.pictures for each in jobs if each.status == "done")
        store.close()
    assert len(jobs) > 12
