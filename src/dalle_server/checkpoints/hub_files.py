"""Files of the Hugging Face hub: fetched into its own cache, resumed, compared with their digests.

The hub's client does the transport. Two things are done here because it does not do them: a download
that was interrupted goes on where it stopped, also in the next process, and a file is compared with the
digest that the hub promises before it enters the cache.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.file_download import HfFileMetadata, http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers, tqdm  # type: ignore[attr-defined]

from dalle_server.checkpoints.digest import hash_file
from dalle_server.checkpoints.tensor_file import Progress
from dalle_server.errors import CheckpointError
from dalle_server.variants import HubFiles

logger = logging.getLogger(__name__)

_TIMEOUT_S = 20.0


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

        return Bar


def cached_file(part: HubFiles, name: str) -> Path | None:
    """Where the hub's cache holds a file, if it does. Asks no network."""
    found = try_to_load_from_cache(part.repository, name, revision=part.revision)
    return Path(found) if isinstance(found, str) else None


def on_the_hub(part: HubFiles) -> dict[str, HfFileMetadata]:
    """Size and digest of each file. Raises what the client raises, also when a required file is absent."""
    files: dict[str, HfFileMetadata] = {}
    for name in (*part.files, *part.optional):
        url = hf_hub_url(part.repository, name, revision=part.revision)
        try:
            files[name] = get_hf_file_metadata(url, timeout=_TIMEOUT_S)
        except (EntryNotFoundError, RepositoryNotFoundError):
            if name in part.files:
                raise
    return files


def fetch(part: HubFiles, name: str, metadata: HfFileMetadata, meter: Meter) -> Path:
    """One file into the hub's own cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.

    The client begins every download anew; 10 GB deserve better. So the blob is fetched here, beside where it
    belongs, and the client, finding it in its place, adds the rest.
    """
    if metadata.etag is None:
        raise OSError("the hub gives no ETag")
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=part.repository, repo_type="model") / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    blob, partial_blob = folder / metadata.etag, folder / f"{metadata.etag}.dalle-server.incomplete"
    with FileLock(folder / f".{metadata.etag}.lock"):
        if not blob.exists():
            if metadata.size is not None and partial_blob.exists() and partial_blob.stat().st_size > metadata.size:
                partial_blob.unlink()
            with partial_blob.open("ab") as file:
                http_get(
                    hf_hub_url(part.repository, name, revision=part.revision),
                    file,
                    resume_size=file.tell(),
                    headers=build_hf_headers(),
                    expected_size=metadata.size,
                    tqdm_class=meter.bar(),
                )
            verify(name, partial_blob, metadata.etag)
            partial_blob.replace(blob)
    meter.file_done(blob.stat().st_size)
    return Path(hf_hub_download(part.repository, name, revision=part.revision))


def verify(name: str, path: Path, promised: str) -> None:
    """Compare with a sha256 (large files) or a git blob id (small ones); delete what differs."""
    if len(promised) == 64:
        found = hash_file(path, hashlib.sha256())
    elif len(promised) == 40:
        found = hash_file(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))
    else:
        logger.warning("%s: the hub's ETag %s is no digest; the file cannot be checked", name, promised)
        return
    if found != promised:
        path.unlink()
        raise CheckpointError(f"{name} was damaged on its way (digest {found}, not {promised}); pull again")
