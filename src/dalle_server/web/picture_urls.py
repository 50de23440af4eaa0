"""Pictures that are kept for a while under unguessable names: the `url` results of the OpenAI API."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flask import Blueprint, Response, current_app, send_file
from flask.sansio.blueprints import BlueprintSetupState

from dalle_server.errors import NotFound, StorageError
from dalle_server.pictures.codec import ImageFormat
from dalle_server.pictures.saving import write_whole
from dalle_server.web.access.security import client_id
from dalle_server.web.routing import for_anyone
from dalle_server.web.service import EXTENSION
from dalle_server.web.serving.forwarded import root_url

SWEEP_EVERY_S = 60.0
OWNER_SHARE = 0.25  # of the store's bytes, that one key or address may fill
_STORE = "dalle_server_pictures"
_NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)")
# data_dir may be a directory that holds other things too: only what has a name of ours is ever deleted.
_OURS = re.compile(rf"{_NAME.pattern}|\.{_NAME.pattern}\.[0-9a-f]{{8}}\.tmp")

blueprint = Blueprint("pictures", __name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file of the store; where an earlier process wrote it, nobody's."""

    owner: str
    size_bytes: int


class PictureStore:
    """Files of `directory`, each gone `ttl_s` after it was written, or sooner: beyond `max_bytes` the oldest go, and
    an owner who fills more than OWNER_SHARE of that makes room with its own. Safe to use from many threads.
    """

    def __init__(self, directory: Path, ttl_s: float, max_bytes: int):
        self.directory = directory
        self.ttl_s = ttl_s
        self.max_bytes = max_bytes
        self._kept: dict[str, _Kept] = {}  # by name, oldest first
        self._used: Counter[str] = Counter()  # bytes of each owner: not added up anew for every picture
        self._known = False  # whether what an earlier process left is counted
        self._swept_at = float("-inf")
        self._lock = threading.Lock()

    def put(self, data: bytes, format: ImageFormat, owner: str = "") -> str:
        """Keep a picture; the name that finds it again. The file appears whole or not at all.

        Raises StorageError when the disk refuses.
        """
        name = f"{secrets.token_urlsafe(24)}.{format.value}"
        try:
            self._sweep()
            self.directory.mkdir(parents=True, exist_ok=True)
            self._make_room(name, _Kept(owner, len(data)))
            write_whole(self.directory / name, data)
        except OSError as error:
            with self._lock:
                self._forget(name)
            raise StorageError(
                f"the picture cannot be kept for its url ({error.strerror}); ask for response_format b64_json"
            ) from None
        return name

    def find(self, name: str) -> Path:
        """The file of a name. Raises NotFound when there was none, or its time is over."""
        path = self.directory / name
        if not _NAME.fullmatch(name) or not self._is_alive(path):
            raise NotFound(
                f"there is no such picture; one is kept for {self.ttl_s:.0f} s, or until newer ones need its room"
            )
        return path

    def _is_alive(self, path: Path) -> bool:
        try:
            return time.time() - path.stat().st_mtime < self.ttl_s
        except OSError:
            return False

    def _make_room(self, name: str, one: _Kept) -> None:
        """Delete the oldest pictures of this owner, then of whoever has most, until one more fits. It counts from now
        on, before its file is there: a sweep that found the file first would take it for an earlier process's.
        """
        with self._lock:
            while self._used[one.owner] and self._used[one.owner] + one.size_bytes > OWNER_SHARE * self.max_bytes:
                self._drop_oldest(one.owner)
            while +self._used and self._used.total() + one.size_bytes > self.max_bytes:
                self._drop_oldest(self._used.most_common(1)[0][0])
            self._kept[name] = one
            self._used[one.owner] += one.size_bytes

    def _drop_oldest(self, owner: str) -> None:
        """The owner has a picture."""
        name = next(name for name, kept in self._kept.items() if kept.owner == owner)
        (self.directory / name).unlink(missing_ok=True)
        self._forget(name)

    def _forget(self, name: str) -> None:
        if (kept := self._kept.pop(name, None)) is not None:
            self._used[kept.owner] -= kept.size_bytes
            if not self._used[kept.owner]:
                del self._used[kept.owner]

    def _sweep(self) -> None:
        with self._lock:
            if time.monotonic() - self._swept_at < SWEEP_EVERY_S or not self.directory.is_dir():
                return
            self._swept_at = time.monotonic()
            left = []
            for entry in os.scandir(self.directory):
                path = Path(entry.path)
                if _OURS.fullmatch(entry.name) and not self._is_alive(path):
                    path.unlink(missing_ok=True)
                    self._forget(entry.name)
                elif not self._known and _NAME.fullmatch(entry.name):
                    left.append((entry.stat().st_mtime, entry.name, entry.stat().st_size))
            if not self._known:
                earlier = {name: _Kept("", size_bytes) for _, name, size_bytes in sorted(left)}
                self._used[""] += sum(kept.size_bytes for name, kept in earlier.items() if name not in self._kept)
                self._kept = earlier | self._kept
                self._known = True


@blueprint.record_once
def _make_store(state: BlueprintSetupState) -> None:
    settings = state.app.extensions[EXTENSION].settings
    directory = settings.data_dir.absolute() / "pictures"
    state.app.extensions[_STORE] = PictureStore(directory, settings.url_ttl_s, settings.max_urls_bytes)


def current_pictures() -> PictureStore:
    store: PictureStore = current_app.extensions[_STORE]
    return store


def keep(data: bytes, format: ImageFormat) -> str:
    """Keep a picture; the absolute URL that shows it until its time is over."""
    return f"{root_url()}pictures/{current_pictures().put(data, format, client_id())}"


@blueprint.get("/pictures/<name>")
@for_anyone("A kept picture, until its time is over", owned=False, reply_type="image/png")
def picture(name: str) -> Response:
    path = current_pictures().find(name)
    response = send_file(path, mimetype=ImageFormat(path.suffix[1:]).media_type)
    response.headers["Cache-Control"] = f"private, max-age={current_pictures().ttl_s:.0f}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
