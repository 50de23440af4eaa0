"""The directories that a serving process writes to, tried before the model is loaded."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from pathlib import Path

from dalle_server.config import Settings
from dalle_server.errors import ConfigError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REMEDIES = {
    errno.ENOTDIR: "a file stands in its way; name another directory",
    errno.EEXIST: "a file stands in its way; name another directory",
    errno.EROFS: "name a directory on a disk that can be written to",
    errno.ENAMETOOLONG: "name a shorter one",
}

logger = logging.getLogger(__name__)


def prepare(settings: Settings) -> None:
    """Make them where they are missing. A full disk is only told: it may have room again, and not all need it.

    Raises ConfigError for one that can never be used.
    """
    _try("data_dir", settings.data_dir.absolute(), private=True)
    _make_private(settings.data_dir.absolute())
    if settings.save_to_disk:
        _try("output_dir", settings.output_dir.absolute(), private=False)


def _try(name: str, path: Path, *, private: bool) -> None:
    try:
        if not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700 if private else 0o777)  # prompts and pictures are nobody else's business
        probe = path / f".probe-{secrets.token_hex(4)}.tmp"
        try:
            probe.write_bytes(b"?")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in _FULL:
            logger.error("%s %s: %s; make room there", name, path, reason)
            return
        remedy = _REMEDIES.get(error.errno or 0, "name one that this user may write to")
        raise ConfigError(f"{name} {path} cannot be used: {reason}; {remedy} (--{name})", param=name) from None


def _make_private(data_dir: Path) -> None:
    """Where the directory is the program's own choice, an earlier release left it open to other users."""
    if data_dir != Settings().data_dir.absolute() or not hasattr(os, "geteuid"):
        return
    state = data_dir.stat()
    if state.st_uid == os.geteuid() and state.st_mode & 0o077:
        data_dir.chmod(0o700)
