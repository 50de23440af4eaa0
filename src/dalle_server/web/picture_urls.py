"""Pictures that are kept for a while under unguessable names: the `url` results of the OpenAI API."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from pathlib import Path

from flask import Blueprint, Response, current_app, send_file
from flask.sansio.blueprints import BlueprintSetupState

from dalle_server.errors import NotFound, StorageError
from dalle_server.pictures.codec import ImageFormat
from dalle_server.pictures.saving import write_whole
from dalle_server.web.forwarded import root_url
from dalle_server.web.routing import describe
from dalle_server.web.service import EXTENSION

SWEEP_EVERY_S = 60.0
_STORE = "dalle_server_pictures"
_NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)")
# data_dir may be a directory that holds other things too: only what has a name of ours is ever deleted.
_OURS = re.compile(rf"{_NAME.pattern}|\.{_NAME.pattern}\.[0-9a-f]{{8}}\.tmp")

blueprint = Blueprint("pictures", __name__)


class PictureStore:
    """Files of `directory`, each gone `ttl_s` after it was written. Safe to use from many threads and processes."""

    def __init__(self, directory: Path, ttl_s: float):
        self.directory = directory
        self.ttl_s = ttl_s
        self._swept_at = float("-inf")
        self._lock = threading.Lock()

    def put(self, data: bytes, format: ImageFormat) -> str:
        """Keep a picture; the name that finds it again. The file appears whole or not at all.

        Raises StorageError when the disk refuses.
        """
        name = f"{secrets.token_urlsafe(24)}.{format.value}"
        try:
            self._sweep()
            self.directory.mkdir(parents=True, exist_ok=True)
            write_whole(self.directory / name, data)
        except OSError as error:
            raise StorageError(
                f"the picture cannot be kept for its url ({error.strerror}); ask for response_format b64_json"
            ) from None
        return name

    def find(self, name: str) -> Path:
        """The file of a name. Raises NotFound when there was none, or its time is over."""
        path = self.directory / name
        if not _NAME.fullmatch(name) or not self._is_alive(path):
            raise NotFound(f"there is no such picture; one is kept for {self.ttl_s:.0f} s")
        return path

    def _is_alive(self, path: Path) -> bool:
        try:
            return time.time() - path.stat().st_mtime < self.ttl_s
        except OSError:
            return False

    def _sweep(self) -> None:
        with self._lock:
            if time.monotonic() - self._swept_at < SWEEP_EVERY_S or not self.directory.is_dir():
                return
            self._swept_at = time.monotonic()
        for entry in os.scandir(self.directory):
            path = Path(entry.path)
            if _OURS.fullmatch(entry.name) and not self._is_alive(path):
                path.unlink(missing_ok=True)


@blueprint.record_once
def _make_store(state: BlueprintSetupState) -> None:
    settings = state.app.extensions[EXTENSION].settings
    directory = settings.data_dir.absolute() / "pictures"
    state.app.extensions[_STORE] = PictureStore(directory, settings.url_ttl_s)


def current_pictures() -> PictureStore:
    store: PictureStore = current_app.extensions[_STORE]
    return store


def keep(data: bytes, format: ImageFormat) -> str:
    """Keep a picture; the absolute URL that shows it until its time is over."""
    return f"{root_url()}pictures/{current_pictures().put(data, format)}"


@blueprint.get("/pictures/<name>")
@describe("A kept picture, until its time is over", access="anyone", cost="little", owned=False, reply_type="image/png")
def picture(name: str) -> Response:
    path = current_pictures().find(name)
    response = send_file(path, mimetype=ImageFormat(path.suffix[1:]).media_type)
    response.headers["Cache-Control"] = f"private, max-age={current_pictures().ttl_s:.0f}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
