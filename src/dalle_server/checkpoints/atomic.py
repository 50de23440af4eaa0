"""Folders that are whole or absent."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from dalle_server.errors import CheckpointError

PARTIAL_SUFFIX = ".partial"


@contextmanager
def replaced_directory(target: Path, *, overwrite: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` when the block succeeds, else is removed.

    Raises CheckpointError when the target exists (unless `overwrite`), the disk lacks `needed_bytes`, or
    the folder cannot be written.
    """
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} already exists; remove it first")
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
    try:
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < needed_bytes:
            raise CheckpointError(f"{target.parent} has {free >> 20} MiB free; {needed_bytes >> 20} MiB are needed")
        yield partial
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        if target.exists():
            _swap(target, partial)
        else:
            partial.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A temporary folder for what `target` is made of. What a killed process leaves of it `remove_partials` removes."""
    with TemporaryDirectory(
        prefix=f".{target.name}.", suffix=PARTIAL_SUFFIX, dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def remove_partials(target: Path) -> None:
    """Remove what killed processes left of `target`. The caller holds the lock that excludes live ones."""
    for partial in target.parent.glob(f".{target.name}.*{PARTIAL_SUFFIX}"):
        shutil.rmtree(partial, ignore_errors=True)


def _swap(target: Path, partial: Path) -> None:
    # Folders cannot be exchanged portably: for an instant neither is there.
    old = target.parent / f".{target.name}.{secrets.token_hex(4)}.old{PARTIAL_SUFFIX}"
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    # Windows can neither open a folder nor flush a file opened for reading.
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
