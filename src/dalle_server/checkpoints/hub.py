"""Published weights from the Hugging Face hub: downloaded, verified, converted.

HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN mean what they mean everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from huggingface_hub.file_download import HfFileMetadata

from dalle_server.checkpoints.cache import converted_once, default_cache_dir, is_ready, variant_dir
from dalle_server.checkpoints.convert import convert
from dalle_server.checkpoints.hub_files import Meter, cached_file, fetch, on_the_hub, verify
from dalle_server.checkpoints.tensor_file import Progress
from dalle_server.errors import CheckpointError, WeightsNotFound
from dalle_server.variants import VARIANTS, HubFiles, ModelSize, Publication


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
        paths = {name: cached_file(part, name) for name in (*part.files, *part.optional)}
        if any(paths[name] is None for name in part.files):
            return None
        found.append({name: path for name, path in paths.items() if path})
    return _snapshot(publication, found)


def _verified(publication: Publication, snapshot: _Snapshot) -> _Snapshot:
    """The cache names its blobs by their digests; where it has no links (Windows) there is nothing to compare."""
    paths = list(snapshot.extra_files.values())
    for part, folder in ((publication.transformer, snapshot.transformer), (publication.vqgan, snapshot.vqgan)):
        paths += [folder / name for name in (*part.files, *part.optional)]
    for path in paths:
        if path.is_symlink() and path.is_file():
            verify(path.name, path.resolve(), path.resolve().name)
    return snapshot


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
            wanted.append(on_the_hub(part))
        meter = Meter(progress, sum(metadata.size or 0 for part_files in wanted for metadata in part_files.values()))
        for part, part_files in zip(_parts(publication), wanted, strict=True):
            found.append({})
            for name, metadata in part_files.items():
                what = f"{part.repository}/{name}"
                found[-1][name] = fetch(part, name, metadata, meter)
    except CheckpointError:
        raise
    except Exception as error:  # of whichever HTTP library this version of the client uses
        raise not_found(size, target, f"{what}: {_first_line(error)}") from error
    return _snapshot(publication, found)


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")
