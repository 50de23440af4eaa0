import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_server.pictures import saving
from dalle_server.pictures.saving import safe_name, save_pictures, sweep_leftovers, write_whole


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
