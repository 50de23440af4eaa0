import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_server.pictures import saving
from dalle_server.pictures.saving import safe_name, save_pictures, sweep_leftovers, write_new, write_whole


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red apple", "a red apple"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..\\..\\x", "_.._x"),
        ("C:\\x", "C__x"),
        ("two\nlines\t", "two lines"),
        ("...", "untitled"),
        ("right\u202eleft\u0000", "rightleft"),
        ("crème brûlée 寿司", "crème brûlée 寿司"),
        ("é" * 300, "é" * 50),
        ("con", "_con"),
        (" .Aux .h", "_Aux .h"),
        ("COM1. a port", "_COM1. a port"),
        ("nul" + " " * 200, "_nul"),
        ("a con", "a con"),
        ("contour", "contour"),
    ],
)
def test_names(prompt: str, name: str) -> None:
    assert safe_name(prompt) == name


@given(st.text())
def test_any_prompt_becomes_one_short_path_component(prompt: str) -> None:
    name = safe_name(prompt)
    assert 0 < len(name.encode()) <= saving.MAX_PROMPT_BYTES
    assert not set(name) & set('<>:"/\\|?*\0') and not name.endswith((".", " "))


def test_two_requests_of_one_second_never_mix(tmp_path: Path) -> None:
    first, second = (save_pictures(tmp_path, "CON", [bytes([n])], "png") for n in (1, 2))
    assert first != second and first.parent == second.parent == tmp_path
    assert ((first / "0.png").read_bytes(), (second / "0.png").read_bytes()) == (b"\x01", b"\x02")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    owner: object = saving.os if call == "fsync" else Path  # type: ignore[attr-defined]
    monkeypatch.setattr(owner, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "0.png", b"x")
    assert list(tmp_path.iterdir()) == []


def test_sweep_deletes_old_leftovers_of_ours_and_nothing_else(tmp_path: Path) -> None:
    ours = save_pictures(tmp_path, "a cat", [b"x"], "png")
    theirs = tmp_path / "somebody's"
    theirs.mkdir()
    leftover = ours / ".0.png.0123abcd.tmp"
    young = ours / ".1.png.0123abcd.tmp"
    kept = [
        ours / "0.png",
        ours / ".notes.tmp",
        ours / ".0.png.0123abcd.tmp.bak",
        theirs / ".0.png.0123abcd.tmp",
        tmp_path / ".0.png.0123abcd.tmp",
        young,
    ]
    for file in (leftover, *kept):
        file.write_bytes(b"x")
        if file != young:
            os.utime(file, (0, 0))
    assert sweep_leftovers(tmp_path) == 1
    assert not leftover.exists() and all(file.exists() for file in kept)
    assert sweep_leftovers(tmp_path) == 0


def test_names_keep_to_the_file_systems_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "latin-1")
    assert saving.safe_name("café 🍎") == "café _"


def test_a_new_file_is_written_down_in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", note)
    saving.write_whole(tmp_path / "a.png", b"x")
    assert synced == ([False, True] if os.name == "posix" else [False])


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no links":
        refuse_links(monkeypatch)


@pytest.mark.usefixtures("links")
def test_a_new_name_stands_for_a_whole_picture_or_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after each call that may last, as a kill or a power loss there would leave it."""
    found: list[list[bytes]] = []

    def noting(call: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            found.append([path.read_bytes() for path in tmp_path.glob("[!.]*")])
            result = call(*args, **kwargs)
            found.append([path.read_bytes() for path in tmp_path.glob("[!.]*")])
            return result

        return noted

    for owner, name in ((os, "fsync"), (os, "link"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, noting(getattr(owner, name)))
    assert write_new(tmp_path, "x", "png", b"whole") == tmp_path / "x.png"
    assert found[0] == [] and found[-1] == [b"whole"]
    assert all(each in ([], [b"whole"]) for each in found)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.png"]


@pytest.mark.usefixtures("links")
def test_a_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"theirs")
    (tmp_path / "x (2).png").mkdir()
    for _ in range(2):  # the second time it is there already
        assert write_new(tmp_path, "x", "png", b"mine") == tmp_path / "x (3).png"
    assert (tmp_path / "x.png").read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 3


def test_many_writers_of_one_name_lose_nothing(tmp_path: Path) -> None:
    pictures = [b"%d" % (i % 8) for i in range(24)]  # some draw the same one
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda data: write_new(tmp_path, "x", "png", data), pictures))
    assert [path.read_bytes() for path in paths] == pictures
    assert all(path.suffix == ".png" for path in tmp_path.iterdir())


@pytest.mark.parametrize(("call", "has_links"), [("fsync", True), ("fsync", False), ("replace", False)])
def test_a_new_picture_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, has_links: bool
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    if not has_links:
        refuse_links(monkeypatch)
    monkeypatch.setattr(os if call == "fsync" else Path, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_new(tmp_path, "x", "png", b"x")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_new(tmp_path, "x", "png", b"x")
    monkeypatch.setattr("os.fsync", lambda descriptor: pytest.fail("written again"))
    assert write_new(tmp_path, "x", "png", b"x") == written
