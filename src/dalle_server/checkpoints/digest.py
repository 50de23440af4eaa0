"""sha256 of files, remembered between starts: hashing 5 GB costs seconds.

A remembered digest counts as long as the file's size, modification time, change time and inode are what they were. It
is written down only if the file had been left alone for some seconds before it was hashed: a change within one tick of
the clock leaves the times as they were, and the old digest would stay (git calls such entries "racy"). Small files are
always hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

CACHE_NAME = ".digests.json"
SUMS_NAME = "SHA256SUMS"
_REMEMBER_FROM_BYTES = 64 << 20
_AT_REST_S = 5.0


def sha256_file(path: Path, report: Callable[[int], None] = lambda done: None) -> str:
    """Hex digest. Remembered in `.digests.json` beside a large file when that folder is writable."""
    before = _stamp(path)
    remember = path.stat().st_size >= _REMEMBER_FROM_BYTES
    if remember:
        known = _read_cache(path.parent).get(path.name)
        if isinstance(known, dict) and known.get("stamp") == before:
            return str(known["sha256"])
    digest = hash_file(path, hashlib.sha256(), report)
    if remember and _stamp(path) == before and time.time() - path.stat().st_mtime > _AT_REST_S:
        _write_cache(path, before, digest)
    return digest


def write_sums(folder: Path) -> None:
    """SHA256SUMS of all files in the folder, as `sha256sum -c` reads it."""
    sums = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
    (folder / SUMS_NAME).write_text("".join(f"{sums[name]}  {name}\n" for name in sums), "utf-8", newline="\n")


def promised_sums(listed: Path) -> dict[str, str]:
    """File's name → hex digest, as SHA256SUMS at `listed` has it; empty where there is none."""
    promised: dict[str, str] = {}
    if listed.exists():
        for line in listed.read_bytes().decode("ascii", "replace").splitlines():
            digest, _, name = line.partition("  ")
            promised[name] = digest
    return promised


def is_as_written(path: Path) -> bool:
    """Whether the file can be read and is what SHA256SUMS beside it promises."""
    try:
        return promised_sums(path.parent / SUMS_NAME).get(path.name) == sha256_file(path)
    except OSError:
        return False


def hash_file(path: Path, digest: hashlib._Hash, report: Callable[[int], None] = lambda done: None) -> str:
    """Feed a file to `digest` (which may already hold a prefix), one MiB at a time."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            report(len(block))
    return digest.hexdigest()


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read_cache(directory: Path) -> dict[str, object]:
    try:
        cache = json.loads((directory / CACHE_NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _write_cache(path: Path, stamp: list[int], digest: str) -> None:
    cache = _read_cache(path.parent) | {path.name: {"stamp": stamp, "sha256": digest}}
    temporary = path.parent / f"{CACHE_NAME}.{os.getpid()}"
    with contextlib.suppress(OSError):  # a read-only folder is hashed at every start
        temporary.write_text(json.dumps(cache), "utf-8")
        temporary.replace(path.parent / CACHE_NAME)
