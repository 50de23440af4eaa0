"""Files of the Hugging Face hub: fetched into its own cache by its own client, then compared with their digests.

https://huggingface.co/docs/huggingface_hub/guides/manage-cache: `snapshots/COMMIT/NAME` is a link to `blobs/ETAG` of
the same repository, which may itself be a link into a store that all repositories share. Only the first is ours to
judge (the ETag is the file's digest) and to delete.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from dalle_server.checkpoints.digest import hash_file
from dalle_server.checkpoints.model_config import shards_of
from dalle_server.checkpoints.tensor_file import Progress
from dalle_server.errors import CheckpointError
from dalle_server.variants import HubFiles

_TIMEOUT_S = 20.0
_ATTEMPTS = 4
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a git blob id (small files) or a sha256 (large ones)


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file as the hub promises it."""

    repository: str
    name: str
    commit: str
    digest: str
    size_bytes: int


class Meter:
    """Adds the bytes of several files up, and lends itself to the hub's client as a progress bar."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total = progress, total
        self._before = self._done = 0

    def file_done(self, num_bytes: int) -> None:
        """Count the whole file, which may have been in the cache already."""
        self._before += num_bytes
        self.tell(self._before - self._done)

    def tell(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress:
            self._progress("downloading", self._done, self._total)

    def bar(self) -> type[tqdm]:
        meter = self

        class Bar(tqdm):
            monitor_interval = 0  # no thread for a bar that nobody sees

            def __init__(self, *args: Any, **kwargs: Any):
                super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]
                meter.tell(kwargs.get("initial", 0))

            def update(self, n: float | None = 1) -> None:
                meter.tell(int(n or 0))

            def update_transfer(self, n: float | None = 1) -> None:
                """Bytes on the wire, which Xet tells apart from bytes of the file."""

        return Bar


# -- the cache


def cached_files(part: HubFiles) -> dict[str, Path] | None:
    """Where the cache holds the files, all of one revision; None if it lacks a required one. Asks no network.

    Other programs pin other commits, and a pinned one has no ref: any snapshot that is whole will do, after ours.
    """
    for revision in (part.revision, "main", *(snapshot.name for snapshot in _snapshots(part.repository))):
        with suppress(CheckpointError):  # a damaged index: this revision is not whole, and pulling makes it so
            if found := _cached_at(part, revision):
                return found
    return None if part.files else {}


def _cached_at(part: HubFiles, revision: str) -> dict[str, Path]:
    """Empty where a required file is lacking. Raises CheckpointError for a damaged index of weights."""

    def cached(*names: str) -> dict[str, Path]:
        at = {name: try_to_load_from_cache(part.repository, name, revision=revision) for name in names}
        return {name: Path(path) for name, path in at.items() if isinstance(path, str)}

    weights = list(cached(*part.weights).items())[:1]
    needed = {*part.files, *(name for _, path in weights for name in _shards(path))}
    found = cached(*needed, *part.optional) | dict(weights)
    return found if found.keys() >= needed and bool(weights) == bool(part.weights) else {}


def _shards(weights: Path) -> list[str]:
    """The files that an index of weights names; none for weights. Raises CheckpointError for a damaged index."""
    return shards_of(weights) if weights.suffix == ".json" else []


def is_cached(file: HubFile) -> bool:
    """Also where another commit had the same bytes: the client makes a link then."""
    if (_repository_folder(file.repository) / "blobs" / file.digest).is_file():
        return True
    return isinstance(try_to_load_from_cache(file.repository, file.name, revision=file.commit), str)


def broken_link(part: HubFiles) -> Path | None:
    """A link of the cache whose file is gone: a cache that was copied or cleaned up in part."""
    names = (*part.files, *part.optional, *part.weights)
    links = (snapshot / name for snapshot in _snapshots(part.repository) for name in names)
    return next((link for link in links if link.is_symlink() and not link.exists()), None)


def _snapshots(repository: str) -> list[Path]:
    """Newest first."""
    folder = _repository_folder(repository) / "snapshots"
    found = [entry for entry in folder.glob("*") if _COMMIT.fullmatch(entry.name)]
    return sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)


def _repository_folder(repository: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def promised_digest(path: Path) -> str | None:
    """The digest after which the cache names a file; None where it has no links (Windows), so that nothing is known.

    One link is followed, not two: behind the second, names are Xet hashes.
    """
    blob = _own_blob(path)
    return blob.name if blob and _DIGEST.fullmatch(blob.name) else None


def _own_blob(path: Path) -> Path | None:
    if not path.is_symlink():
        return None
    blob = Path(os.path.normpath(path.parent / path.readlink()))
    own = Path(os.path.normpath(path.parents[1].parent / "blobs"))
    return blob if blob.parent == own else None


def discard(path: Path) -> None:
    """Delete a snapshot's file and its blob, never what lies outside the repository's own folder."""
    if blob := _own_blob(path):
        blob.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


# -- the hub


def on_the_hub(part: HubFiles, commits: dict[tuple[str, str], str]) -> list[HubFile]:
    """The required files and the optional ones that exist. Raises what the client raises, also for a missing one.

    `commits` remembers what revisions stand for, so that all files are of one commit whatever is pushed meanwhile.
    """
    files: list[HubFile] = []

    def ask(name: str, *, needed: bool) -> HubFile | None:
        revision = commits.get((part.repository, part.revision), part.revision)
        try:
            file = _ask(part.repository, name, revision)
        except RevisionNotFoundError:
            raise
        except (EntryNotFoundError, RepositoryNotFoundError):
            if needed:
                raise
            return None
        commits[part.repository, part.revision] = file.commit
        files.append(file)
        return file

    for name in (*part.files, *part.optional):
        ask(name, needed=name in part.files)
    for name in part.weights:
        if weights := ask(name, needed=name == part.weights[-1]):
            index = fetch(weights, Meter(None, 0)) if name.endswith(".json") else Path(name)
            for shard in _shards(index):
                ask(shard, needed=True)
            break
    return files


def _ask(repository: str, name: str, revision: str) -> HubFile:
    url = hf_hub_url(repository, name, revision=revision)
    for attempt in range(_ATTEMPTS):
        try:
            metadata = get_hf_file_metadata(url, timeout=_TIMEOUT_S)
            break
        except HfHubHTTPError as error:
            if attempt == _ATTEMPTS - 1 or not (error.response.status_code >= 500 or error.response.status_code == 429):
                raise
        except Exception:  # no connection, in the words of whichever HTTP library this version of the client uses
            if attempt == _ATTEMPTS - 1:
                raise
        time.sleep(2**attempt)
    commit, digest = metadata.commit_hash or "", metadata.etag or ""
    # Both become names in the cache. A login page of the network has neither.
    if not _COMMIT.fullmatch(commit):
        raise OSError(
            "what answers is no hub (it names no commit): a login page of this network, a proxy, or a wrong HF_ENDPOINT"
        )
    if not _DIGEST.fullmatch(digest):
        raise OSError(f"its ETag {digest[:80]!r} is no digest, so that the file could not be checked")
    return HubFile(repository, name, commit, digest, metadata.size or 0)


def fetch(file: HubFile, meter: Meter) -> Path:
    """One file in the hub's cache, downloaded unless it is there. Raises CheckpointError when it is not what it should
    be, twice: a damaged copy in the cache is replaced once.
    """
    for force in (False, True):
        path = Path(
            hf_hub_download(
                file.repository, file.name, revision=file.commit, tqdm_class=meter.bar(), force_download=force
            )
        )
        found = _digest(path, file.digest)
        if found == file.digest:
            meter.file_done(path.stat().st_size)
            return path
    discard(path)
    raise _damaged(path, found, file.digest)


def verify(path: Path) -> None:
    """Compare a file of the cache with its name there. Raises CheckpointError, and deletes it, when they differ."""
    promised = promised_digest(path)
    if promised and (found := _digest(path, promised)) != promised:
        discard(path)
        raise _damaged(path, found, promised)


def _digest(path: Path, like: str) -> str:
    if len(like) == 64:
        return hash_file(path, hashlib.sha256())
    return hash_file(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _damaged(path: Path, found: str, promised: str) -> CheckpointError:
    return CheckpointError(f"{path.name} was damaged on its way (digest {found}, not {promised}); pull again")
