"""Pictures saved under output_dir: safe names, a directory for each request, files that are whole or absent."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

MAX_PROMPT_BYTES = 100
LEFTOVER_S = 60.0  # a write takes milliseconds; what is older was left by a process that was killed
_UNSAFE = re.compile(r'[<>:"/\\|?*]')
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)  # of Windows
_OUR_DIRECTORY = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_.+")
_OUR_TEMPORARY = re.compile(r"\.\d+\.(png|jpeg)\.[0-9a-f]{8}\.tmp")


def save_pictures(output_dir: Path, prompt: str, pictures: Sequence[bytes], suffix: str) -> Path:
    """Write OUTPUT_DIR/{YYYY-mm-dd_HH-MM-SS}_{prompt}/{index}.{suffix}; returns the new directory. Raises OSError."""
    directory = _new_directory(output_dir, f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{safe_name(prompt)}")
    for index, picture in enumerate(pictures):
        write_whole(directory / f"{index}.{suffix}", picture)
    return directory


def safe_name(prompt: str) -> str:
    """The prompt as the start or a part of a file name on any system: at most MAX_PROMPT_BYTES of UTF-8, no
    separators, no device: on Windows `con.` before whatever else is one.
    """
    beginning = prompt.lstrip()[: 10 * MAX_PROMPT_BYTES]
    printable = "".join(" " if char.isspace() else char for char in beginning)
    # C*: control, format (bidi marks), surrogates, unassigned: invisible or unencodable in a file name.
    printable = "".join(char for char in printable if unicodedata.category(char)[0] != "C")
    safe = _UNSAFE.sub("_", printable).lstrip(" .")
    safe = f"_{safe}" if _DEVICE.match(safe) else safe
    encoding = sys.getfilesystemencoding()  # Latin-1 has no emoji, and a name with one could not be made
    safe = safe.encode(encoding, "replace").decode(encoding).replace("?", "_")
    return safe.encode()[:MAX_PROMPT_BYTES].decode(errors="ignore").rstrip(" .") or "untitled"  # Windows drops the ends


def _new_directory(output_dir: Path, name: str) -> Path:
    """Two requests of one second never share a directory: mkdir decides who has the name."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 10_000):
        directory = output_dir / (name if attempt == 1 else f"{name} ({attempt})")
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise FileExistsError(f"{output_dir} has too many directories named {name}")


def sweep_leftovers(output_dir: Path) -> int:
    """Delete the temporary files of pictures whose writer was killed; how many. Only under names that we give, and
    only old ones: another server may write to the same directory. Raises OSError.
    """
    limit, swept = time.time() - LEFTOVER_S, 0
    for directory in os.scandir(output_dir):
        if not _OUR_DIRECTORY.fullmatch(directory.name) or not directory.is_dir(follow_symlinks=False):
            continue
        for entry in os.scandir(directory):
            if _OUR_TEMPORARY.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < limit:
                Path(entry).unlink()
                swept += 1
    return swept


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, also when the machine stops in the middle."""
    with _written_beside(path, data) as temporary:
        temporary.replace(path)
    remember_names(path.parent)


@contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A file of `data`, on the disk, under a name of its own, which it has for no longer than this lasts."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def remember_names(directory: Path) -> None:
    """A file whose directory was not written down is gone when the machine stops. Windows cannot, and need not."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_new(directory: Path, name: str, suffix: str, data: bytes) -> Path:
    """Write DIRECTORY/NAME.SUFFIX whole, or NAME (2), (3) … where another file has that name; returns the path.

    A file of the same bytes is left as it is. No other file is ever replaced. Raises OSError.
    """
    for attempt in range(1, 10_000):
        path = directory / (f"{name}.{suffix}" if attempt == 1 else f"{name} ({attempt}).{suffix}")
        if not os.path.lexists(path) and _is_written_new(path, data):
            return path
        if path.is_file() and path.read_bytes() == data:
            return path
    raise FileExistsError(f"{directory} has too many files named {name}")


def _is_written_new(path: Path, data: bytes) -> bool:
    """False where somebody else took the name meanwhile."""
    with _written_beside(path, data) as temporary:
        try:
            _give_new_name(temporary, path)
        except FileExistsError:
            return False
    remember_names(path.parent)
    return True


def _give_new_name(file: Path, path: Path) -> None:
    """By a link, the name is there together with what it stands for, and to whom it goes is decided by the system.

    Raises FileExistsError.
    """
    try:
        os.link(file, path)
    except FileExistsError:
        raise
    except OSError:  # FAT and some file systems of networks have no links: for a moment the name stands for nothing
        path.open("xb").close()
        try:
            file.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
