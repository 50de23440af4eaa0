"""Kept pictures: whole files, unguessable names, gone in time."""

import os
import time
from pathlib import Path

import pytest

from dalle_server.errors import NotFound, StorageError
from dalle_server.pictures.codec import ImageFormat
from dalle_server.web import picture_urls as pictures
from dalle_server.web.picture_urls import PictureStore


def test_names_are_long_and_never_the_same(tmp_path: Path) -> None:
    store = PictureStore(tmp_path, ttl_s=60)
    names = {store.put(b"x", ImageFormat.PNG) for _ in range(50)}
    assert len(names) == 50
    assert {len(name) for name in names} == {32 + len(".png")}


def test_the_dead_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SWEEP_EVERY_S", 0.0)
    store = PictureStore(tmp_path, ttl_s=60)
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
    PictureStore(tmp_path, ttl_s=60).put(b"x", ImageFormat.PNG)
    assert all(path.exists() for path in theirs)


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, refuse)
    with pytest.raises(StorageError, match="No space left on device"):
        PictureStore(tmp_path, ttl_s=60).put(b"x", ImageFormat.PNG)
    assert list(tmp_path.iterdir()) == []
