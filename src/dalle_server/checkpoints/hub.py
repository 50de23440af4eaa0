"""Published weights from the Hugging Face hub: downloaded, verified, converted.

The hub's client does the transport and keeps its own cache: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and
HF_TOKEN mean what they mean everywhere. Two things are done here because it does not do them: a download
that was interrupted goes on where it stopped, and a file is compared with the digest that the hub
promises before it enters the cache.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import HfFileMetadata, http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers, tqdm  # type: ignore[attr-defined]

from dalle_server.checkpoints.cache import converted_once, default_cache_dir, is_ready, variant_dir
from dalle_server.checkpoints.convert import convert
from dalle_server.checkpoints.digest import hash_file
from dalle_server.checkpoints.tensor_file import Progress
from dalle_server.errors import CheckpointError, WeightsNotFound
from dalle_server.variants import VARIANTS, HubFiles, ModelSize, Publication

logger = logging.getLogger(__name__)

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A line of `dalle-server models`."""

    size: ModelSize
    title: str
    licence: str
    state: str  # "embedded" | "ready" | "downloaded" (converted at first use) | "absent"
    path: Path | None
    download_bytes: int  # 0 when nothing needs to be downloaded
    weights_bytes: int  # on disk after conversion, and in memory
    repositories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Downloaded files of one publication."""

    transformer: Path
    vqgan: Path
    extra_files: dict[str, Path]
    origin: dict[str, str]


def list_models(cache_dir: Path | None = None) -> list[ModelStatus]:
    """What is on this machine, and what the rest would take. Asks no network."""
    return [_status(size, cache_dir or default_cache_dir()) for size in VARIANTS]


def pull(
    size: ModelSize,
    progress: Progress | None = None,
    *,
    cache_dir: Path | None = None,
    mirror: bool = False,
) -> Path:
    """Download what is missing, verify it, convert it; returns the native folder. Repeating is cheap.

    `mirror` takes min-dalle's repository instead of dalle-mini's (smaller; needs torch once).
    Raises WeightsNotFound when the hub cannot be reached or does not have the files, CheckpointError
    when a file differs from its published digest (it is then deleted, so that a repetition starts clean).
    """
    target = variant_dir(size, cache_dir or default_cache_dir())
    if is_ready(target):
        return target
    publication = _publication(size, mirror)

    def make() -> None:
        try:
            if constants.HF_HUB_OFFLINE:
                raise not_found(size, target, "HF_HUB_OFFLINE is set")
            snapshot = _download(size, publication, target, progress)
        except WeightsNotFound:
            cached = _cached(publication)
            if cached is None:
                raise
            snapshot = _verified(publication, cached)
        _convert(size, publication, snapshot, target, progress)

    return converted_once(target, make)


def convert_downloaded(
    size: ModelSize, progress: Progress | None = None, *, cache_dir: Path | None = None
) -> Path | None:
    """Convert what the Hugging Face cache holds, without network; None if it lacks a file."""
    target = variant_dir(size, cache_dir or default_cache_dir())
    variant = VARIANTS[size]
    for publication in filter(None, (variant.published, variant.mirror)):
        snapshot = _cached(publication)
        if snapshot:
            make = partial(_convert, size, publication, _verified(publication, snapshot), target, progress)
            return converted_once(target, make)
    return None


def not_found(size: ModelSize, target: Path, reason: str) -> WeightsNotFound:
    """The error that names the ways out."""
    name = size.folder_name
    return WeightsNotFound(
        f"{VARIANTS[size].title} is not on this machine and could not be downloaded ({reason}). Either run"
        f" `dalle-server pull {name}` on a machine with a network and copy its folder to {target}; or serve weights"
        f" you have with --model_dir PATH; or use the embedded model with --model_version nano.",
        param="model_version",
    )


def _publication(size: ModelSize, mirror: bool) -> Publication:
    variant = VARIANTS[size]
    publication = variant.mirror if mirror else variant.published
    if publication is None:
        what = "has no mirror" if mirror else "is shipped inside this package: there is nothing to pull"
        raise WeightsNotFound(f"{variant.title} {what}")
    return publication


def _status(size: ModelSize, cache_dir: Path) -> ModelStatus:
    variant = VARIANTS[size]
    target = variant_dir(size, cache_dir)
    publications = [publication for publication in (variant.published, variant.mirror) if publication]
    if is_ready(target):
        state = "ready" if publications else "embedded"
    else:
        state = "downloaded" if any(_cached(publication) for publication in publications) else "absent"
    return ModelStatus(
        size=size,
        title=variant.title,
        licence=variant.licence,
        state=state,
        path=target if is_ready(target) else None,
        download_bytes=variant.published.download_bytes if state == "absent" and variant.published else 0,
        weights_bytes=variant.weights_bytes,
        repositories=tuple(publication.transformer.repository for publication in publications),
    )


def _cached(publication: Publication) -> _Snapshot | None:
    """The publication in the Hugging Face cache, if every required file is there."""
    found: list[dict[str, Path]] = []
    for part in _parts(publication):
        paths = {name: _cached_file(part, name) for name in (*part.files, *part.optional)}
        if any(paths[name] is None for name in part.files):
            return None
        found.append({name: path for name, path in paths.items() if path})
    return _snapshot(publication, found)


def _verified(publication: Publication, snapshot: _Snapshot) -> _Snapshot:
    """The cache names its blobs by their digests; where it has no links (Windows) there is nothing to compare."""
    for part, folder in ((publication.transformer, snapshot.transformer), (publication.vqgan, snapshot.vqgan)):
        for path in (folder / name for name in part.files):
            if path.is_symlink():
                _verify(path.name, path.resolve(), path.resolve().name)
    return snapshot


def _cached_file(part: HubFiles, name: str) -> Path | None:
    found = try_to_load_from_cache(part.repository, name, revision=part.revision)
    return Path(found) if isinstance(found, str) else None


def _parts(publication: Publication) -> tuple[HubFiles, HubFiles, HubFiles]:
    return publication.transformer, publication.vqgan, publication.word_frequency


def _snapshot(publication: Publication, found: list[dict[str, Path]]) -> _Snapshot:
    transformer, vqgan, extra_files = found
    folder = next(iter(transformer.values())).parent
    origin = {"repository": publication.transformer.repository, "revision": folder.name}
    return _Snapshot(folder, next(iter(vqgan.values())).parent, extra_files, origin)


def _download(size: ModelSize, publication: Publication, target: Path, progress: Progress | None) -> _Snapshot:
    wanted: list[dict[str, HfFileMetadata]] = []
    found: list[dict[str, Path]] = []
    what = publication.transformer.repository
    try:
        for part in _parts(publication):
            what = part.repository
            wanted.append(_on_the_hub(part))
        meter = _Meter(progress, sum(metadata.size or 0 for part_files in wanted for metadata in part_files.values()))
        for part, part_files in zip(_parts(publication), wanted, strict=True):
            found.append({})
            for name, metadata in part_files.items():
                what = f"{part.repository}/{name}"
                found[-1][name] = _fetch(part, name, metadata, meter)
    except CheckpointError:
        raise
    except Exception as error:  # of whichever HTTP library this version of the client uses
        raise not_found(size, target, f"{what}: {_first_line(error)}") from error
    return _snapshot(publication, found)


def _on_the_hub(part: HubFiles) -> dict[str, HfFileMetadata]:
    files: dict[str, HfFileMetadata] = {}
    for name in (*part.files, *part.optional):
        url = hf_hub_url(part.repository, name, revision=part.revision)
        try:
            files[name] = get_hf_file_metadata(url, timeout=_TIMEOUT_S)
        except EntryNotFoundError:
            if name in part.files:
                raise
    return files


def _fetch(part: HubFiles, name: str, metadata: HfFileMetadata, meter: _Meter) -> Path:
    """Into the hub's own cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.

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
            _verify(name, partial_blob, metadata.etag)
            partial_blob.replace(blob)
    meter.file_done(blob.stat().st_size)
    return Path(hf_hub_download(part.repository, name, revision=part.revision))


def _verify(name: str, path: Path, promised: str) -> None:
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


def _convert(
    size: ModelSize, publication: Publication, snapshot: _Snapshot, target: Path, progress: Progress | None
) -> None:
    convert(
        snapshot.transformer,
        target,
        progress,
        vqgan=snapshot.vqgan,
        name=size.folder_name,
        dtype=np.dtype(publication.dtype) if publication.dtype else None,
        file_suffix=publication.file_suffix,
        extra_files=snapshot.extra_files,
        origin=snapshot.origin,
    )


class _Meter:
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
            def __init__(self, *args: Any, **kwargs: Any):
                super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]
                meter.tell(kwargs.get("initial", 0))

            def update(self, n: float | None = 1) -> None:
                meter.tell(int(n or 0))

        return Bar


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")
