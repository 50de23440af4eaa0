"""Pictures of jobs in an object store: a real S3 server, and one that fails now and then."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore import exceptions

from dalle_server.errors import NotReady, StorageError
from dalle_server.web.jobs.storage.files import StoreAway
from dalle_server.web.jobs.storage.objects import ObjectFiles
from dalle_server.web.jobs.storage.retention import Retention
from dalle_server.web.jobs.storage.store import Store
from tests.fake_runner import FakeRunner
from tests.web.jobs.s3 import S3, s3
from tests.web.jobs.store_help import finished, ids, job, picture_bytes
from tests.web.live import live
from tests.web.waits import until


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3() as server:
        yield server


@pytest.fixture
def bucket(server: S3, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return server.make_bucket(f"b{abs(hash(request.node.nodeid))}")


@pytest.fixture
def files(bucket: str) -> ObjectFiles:
    return ObjectFiles(bucket)


def test_it_keeps_files_by_name(files: ObjectFiles) -> None:
    for name in ("job-1/0.png", "job-1/job.json", "job-12/0.webp"):
        files.write(name, name.encode())
    files.write("job-1/0.png", b"again")
    assert files.read("job-1/0.png") == b"again"
    assert files.has("job-1/0.png") and not files.has("job-1/1.png")
    assert files.changed_at("job-1/0.png") > 1.7e9
    assert list(files.jobs()) == [("job-1", ["job-1/0.png", "job-1/job.json"]), ("job-12", ["job-12/0.webp"])]
    assert files.set_aside("job-12/0.webp").startswith("set-aside/")
    assert [job_id for job_id, _ in files.jobs()] == ["job-1"]


def test_a_deletion_is_known_until_it_is_over(files: ObjectFiles) -> None:
    files.write("job-1/0.png", b"1")
    files.write("job-12/0.png", b"12")
    files.delete_job("job-1")
    assert (files.deleted(), [job_id for job_id, _ in files.jobs()]) == (["job-1"], ["job-12"])
    files.delete_job("job-1")  # again, after a kill
    files.forget_deleted("job-1")
    assert files.deleted() == []


@pytest.mark.parametrize("name", ["job-1/../job-2/0.png", "/etc/passwd", "job-1/0.exe", "deleted/job-1", ""])
def test_only_names_of_ours_lead_anywhere(files: ObjectFiles, name: str) -> None:
    for touch in (files.read, files.has, lambda name: files.write(name, b"x")):
        try:
            assert not touch(name)
        except FileNotFoundError:
            continue


def test_a_store_that_does_not_answer_is_no_missing_picture(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any, **kw: Any) -> Any:
        raise exceptions.GenericError("503 Slow Down")

    for name in ("get", "put", "head", "list"):
        monkeypatch.setattr(obstore, name, away)
    for touch in (files.read, files.has, files.changed_at, lambda name: files.write(name, b"x")):
        with pytest.raises(StoreAway):
            touch("job-1/0.png")
    with pytest.raises(StoreAway):
        list(files.jobs())


def test_a_store_on_it_is_a_store(bucket: str, tmp_path: Path) -> None:
    store = Store(tmp_path, pictures=bucket)
    for number in range(3):
        finished(store, number, num_pictures=2)
    assert ids(store) == ["job-2", "job-1", "job-0"]
    made = store.rows.get("job-1")
    assert made is not None
    assert store.read(made.pictures[1]) == picture_bytes(made, 1)
    assert store.sweep(Retention(max_jobs=1), now=2000.0) == 2
    assert ids(store) == ["job-2"]
    assert [job_id for job_id, _ in store.files.jobs()] == ["job-2"]
    store.close()
    (tmp_path / "jobs.sqlite3").unlink()  # the rows are made anew from the objects
    again = Store(tmp_path, pictures=bucket)
    assert ids(again) == ["job-2"]
    again.close()


def test_a_picture_that_has_gone_is_gone_and_one_that_cannot_be_read_now_is_not(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, pictures=bucket)
    made = finished(store, 1)
    picture = (store.rows.get(made.id) or made).pictures[0]

    def away(*args: Any, **kw: Any) -> Any:
        raise exceptions.GenericError("503 Slow Down")

    with monkeypatch.context() as patched:
        patched.setattr(obstore, "get", away)
        with pytest.raises(NotReady):
            store.read(picture)
    store.files.delete_job(made.id)
    assert store.read(picture) is None
    store.close()


def test_a_bucket_that_refuses_fails_the_job(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, pictures=bucket)
    made = job(1)
    store.add(made)

    def refuse(*args: Any, **kw: Any) -> Any:
        raise exceptions.PermissionDeniedError("AccessDenied")

    monkeypatch.setattr(obstore, "put", refuse)
    with pytest.raises(StorageError, match="keys and rights"):
        store.add_picture(made, 0, picture_bytes(made, 0), (8, 8))
    store.close()


@pytest.mark.parametrize("every", [2, 3])
def test_a_store_that_fails_at_every_kth_write_loses_no_picture(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    calls, put = itertools.count(1), obstore.put

    def now_and_then(*args: Any, **kw: Any) -> Any:
        if next(calls) % every == 0:
            raise exceptions.GenericError("500 Internal Server Error")
        return put(*args, **kw)

    keys = ("alice:key-of-alice-12", "bob:key-of-bob-123456")
    with live(tmp_path / "quiet", FakeRunner()) as quiet:
        expected = pictures(quiet.url, 4)
    monkeypatch.setattr(obstore, "put", now_and_then)
    with live(tmp_path / "s3", FakeRunner(), picture_store=bucket, api_keys=keys) as served:
        found = pictures(served.url, 4, "key-of-alice-12")
        assert found == expected and next(calls) > 4 * 4
        asked = listed(served.url, "key-of-alice-12")[0]["images"][0]["url"]
        with pytest.raises(urllib.error.HTTPError, match="404"):  # the same rules as for any picture
            call(served.url + asked, key="key-of-bob-123456")


def call(url: str, body: object = None, key: str = "none") -> bytes:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as reply:
        answer: bytes = reply.read()
    return answer


def listed(url: str, key: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = json.loads(call(f"{url}/v1/jobs", key=key))["data"]
    return data


def pictures(url: str, num_jobs: int, key: str = "none") -> list[list[bytes]]:
    """Of so many jobs with three each, in order."""
    for number in range(num_jobs):
        call(f"{url}/v1/jobs", {"prompt": "an apple", "num_images": 3, "seed": number}, key)
    until(lambda: all(each["status"] in ("done", "failed") for each in listed(url, key)), 60)
    jobs = sorted(listed(url, key), key=lambda each: each["seed"])
    assert [each["status"] for each in jobs] == ["done"] * num_jobs, jobs
    return [[call(url + image["url"], key=key) for image in each["images"]] for each in jobs]
