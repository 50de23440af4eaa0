"""Why a file cannot be read: the usual ways in which a copy of weights goes wrong, one sentence each with a remedy."""

from __future__ import annotations

from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"
_LOOKED_AT_BYTES = 512


def missing(path: Path) -> str:
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which is not there; copy what the links of its folder point to"
    return f"{path} is missing"


def unreadable(path: Path, kind: str, error: object) -> str:
    """`kind` is what the file should have been; `error` what its reader says, shown where nothing better is known."""
    return f"{path} is not {kind}: {instead(path) or f'{error}; copy it again'}"


def instead(path: Path) -> str | None:
    """What the file is in place of weights, and the remedy; None where nothing is known."""
    try:
        with path.open("rb") as file:
            beginning = file.read(_LOOKED_AT_BYTES)
    except OSError:
        return None
    if not beginning:
        return "it is empty; copy it again"
    if beginning.startswith(_LFS):
        return f"it is a git-LFS pointer to the file; run `git lfs pull` in {path.parent}"
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page (a login or an error) that was saved in its place; download it again"
    return None
