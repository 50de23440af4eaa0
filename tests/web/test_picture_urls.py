"""Kept pictures: whole files, unguessable names, gone in time."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from dalle_server.errors import NotFound, StorageError
from dalle_server.pictures.codec import ImageFormat
from dalle_server.web import picture_urls as pictures
from dalle_server.web.picture_urls import PictureStore


def test_names_are_long_and_never_the_same(tmp_path: Path) -> None:
    store = PictureStore(tmp_path, ttl_s=60, max_bytes=10**6)
    names = {store.put(b"x", ImageFormat.PNG) for _ in range(50)}
    assert len(names) == 50
    assert {len(name) for name in names} == {32 + len(".png")}


def test_the_dead_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SWEEP_EVERY_S", 0.0)
    store = PictureStore(tmp_path, ttl_s=60, max_bytes=10**6)
    old = store.put(b"old", ImageFormat.JPEG)
    (tmp_path / f".{old}.0123abcd.tmp").write_bytes(b"left by a crash")
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 61,) * 2)
    new = store.put(b"new", ImageFormat.JPEG)
    assert [path.name for path in tmp_path.iterdir()] == [new]
    assert store.find(new).read_bytes() == b"new"
    with pytest.raises(NotFound, match="kept for 60 s"):
        store.find(old)


def test_what_others_keep_in_the_directory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--data_dir ~` on a system where ~/pictures is ~/Pictures must not cost anyone their photographs."""
    monkeypatch.setattr(pictures, "SWEEP_EVERY_S", 0.0)
    theirs = [tmp_path / name for name in ("holiday.jpeg", ".hidden.tmp", "album")]
    theirs[0].write_bytes(b"x")
    theirs[1].write_bytes(b"x")
    theirs[2].mkdir()
    for path in theirs:
        os.utime(path, (0, 0))
    PictureStore(tmp_path, ttl_s=60, max_bytes=10**6).put(b"x", ImageFormat.PNG)
    assert all(path.exists() for path in theirs)


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, refuse)
    with pytest.raises(StorageError, match="No space left on device"):
        PictureStore(tmp_path, ttl_s=60, max_bytes=10**6).put(b"x", ImageFormat.PNG)
    assert list(tmp_path.iterdir()) == []


def sizes(store: PictureStore) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in store.directory.iterdir()}


def test_an_owner_makes_room_with_its_own_pictures(tmp_path: Path) -> None:
    store = PictureStore(tmp_path, ttl_s=60, max_bytes=400)
    theirs = store.put(b"t" * 90, ImageFormat.PNG, "them")
    ours = [store.put(b"o" * 40, ImageFormat.PNG, "us") for _ in range(4)]
    assert sorted(sizes(store)) == sorted([theirs, *ours[2:]]), "a quarter of 400 bytes is two pictures of 40"
    with pytest.raises(NotFound, match="until newer ones need its room"):
        store.find(ours[0])


def test_the_owner_of_most_makes_room_for_others(tmp_path: Path) -> None:
    store = PictureStore(tmp_path, ttl_s=60, max_bytes=400)
    first = [store.put(b"a" * 45, ImageFormat.PNG, "a") for _ in range(2)]
    others = [store.put(b"x" * 80, ImageFormat.PNG, name) for name in "bcd"]
    last = store.put(b"e" * 90, ImageFormat.PNG, "e")
    kept = set(sizes(store))
    assert sum(sizes(store).values()) <= 400
    assert first[0] not in kept and {first[1], *others, last} <= kept


def test_what_an_earlier_process_left_counts_and_goes_first(tmp_path: Path) -> None:
    old = PictureStore(tmp_path, ttl_s=60, max_bytes=10**6).put(b"x" * 390, ImageFormat.PNG, "a")
    store = PictureStore(tmp_path, ttl_s=60, max_bytes=400)
    new = store.put(b"y" * 90, ImageFormat.PNG, "a")
    assert list(sizes(store)) == [new]
    assert old != new


def test_a_picture_larger_than_an_owners_share_is_kept_all_the_same(tmp_path: Path) -> None:
    store = PictureStore(tmp_path, ttl_s=60, max_bytes=100)
    names = [store.put(b"x" * 60, ImageFormat.PNG, "a") for _ in range(2)]
    assert list(sizes(store)) == names[1:]


def test_a_picture_costs_the_same_however_many_are_kept(tmp_path: Path) -> None:
    """What each owner fills is counted on, through every way in and out, and not added up for each picture."""
    PictureStore(tmp_path, ttl_s=60, max_bytes=10**6).put(b"x" * 100, ImageFormat.PNG, "a")
    store = PictureStore(tmp_path, ttl_s=60, max_bytes=1000)
    for number in range(60):
        store.put(b"y" * (30 + number), ImageFormat.PNG, "abc"[number % 3])
        added = Counter[str]()
        for kept in store._kept.values():
            added[kept.owner] += kept.size_bytes
        assert store._used == added and added.total() == sum(sizes(store).values())
    store.ttl_s, store._swept_at = 0.0, float("-inf")
    store.put(b"z", ImageFormat.PNG, "d")
    assert store._used == {"d": 1}


def test_a_sweep_between_file_and_books_counts_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PictureStore(tmp_path, ttl_s=60, max_bytes=400)

    def write_and_sweep(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        store._swept_at = float("-inf")
        store._sweep()  # another request's, the first one to look at the directory

    monkeypatch.setattr(pictures, "write_whole", write_and_sweep)
    store.put(b"x" * 90, ImageFormat.PNG, "us")
    assert store._used == Counter({"us": 90})


def test_a_file_that_could_not_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    store = PictureStore(tmp_path, ttl_s=60, max_bytes=400)
    with monkeypatch.context() as patched, pytest.raises(StorageError):
        patched.setattr(pictures, "write_whole", refuse)
        store.put(b"x" * 90, ImageFormat.PNG, "us")
    assert not +store._used and not store._kept


def test_a_full_disk_costs_no_picture_that_the_answer_holds(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "write_whole", refuse)
    reply = client.post("/v1/images/generations", json={"prompt": "a", "n": 2})
    assert [set(each) & {"url", "b64_json"} for each in reply.json["data"]] == [{"b64_json"}] * 2
    assert "No space left on device" in caplog.text
    asked = client.post("/v1/images/generations", json={"prompt": "a", "response_format": "url"})
    assert (asked.status_code, asked.json["error"]["code"]) == (507, "storage_error")
