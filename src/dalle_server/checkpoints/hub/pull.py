"""Published weights from the Hugging Face hub: downloaded, verified, converted.

HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN mean what they mean everywhere.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from huggingface_hub import constants

from dalle_server.checkpoints.cache import converted_once, default_cache_dir, is_ready, variant_dir
from dalle_server.checkpoints.convert import convert
from dalle_server.checkpoints.hub.files import (
    HubFile,
    Meter,
    broken_link,
    cached_files,
    fetch,
    is_cached,
    on_the_hub,
    verify,
)
from dalle_server.checkpoints.model_config import read_json
from dalle_server.checkpoints.native import CONFIG
from dalle_server.checkpoints.published.pickles import SUFFIXES
from dalle_server.checkpoints.tensor_file import Progress
from dalle_server.errors import CheckpointError, WeightsNotFound, first_line
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
    weights_bytes: int  # on disk after conversion
    repositories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Downloaded files of one publication."""

    transformer: Path
    vqgan: Path | None  # None: in the transformer's folder, in the same files
    extra_files: dict[str, Path]
    origin: dict[str, str]
    files: tuple[Path, ...]  # all of them


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
    when a file differs from its published digest (it is then deleted, so that a repetition starts clean)
    and when what is here is from the other repository.
    """
    target = variant_dir(size, cache_dir or default_cache_dir())
    if is_ready(target):
        if VARIANTS[size].published is not None:
            _check_origin(target, _publication(size, mirror).transformer.repository)
        return target
    publication = _publication(size, mirror)

    def make() -> None:
        try:
            if constants.HF_HUB_OFFLINE:
                raise not_found(size, target, f"HF_HUB_OFFLINE is set{_broken(publication)}")
            snapshot = _download(size, publication, target, progress)
        except WeightsNotFound:
            cached = _cached(publication)
            if cached is None:
                raise
            snapshot = _verified(cached)
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
            make = partial(_convert, size, publication, _verified(snapshot), target, progress)
            return converted_once(target, make)
    return None


def _check_origin(target: Path, repository: str) -> None:
    source = read_json(target / CONFIG).get("source")
    found = source.get("repository", repository) if isinstance(source, dict) else repository
    if found != repository:
        raise CheckpointError(f"{target} holds the weights of {found}: delete it to have those of {repository}")


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
    found = [cached_files(part) for part in _parts(publication)]
    whole = [files for files in found if files is not None]
    return _snapshot(publication, whole) if len(whole) == len(found) else None


def _verified(snapshot: _Snapshot) -> _Snapshot:
    for path in snapshot.files:
        verify(path)
    return snapshot


def _broken(publication: Publication) -> str:
    links = [link for link in map(broken_link, _parts(publication)) if link]
    return f", and the file behind {links[0]} is gone" if links else ""


def _parts(publication: Publication) -> list[HubFiles]:
    return [part for part in (publication.transformer, publication.vqgan, publication.word_frequency) if part]


def _snapshot(publication: Publication, found: list[dict[str, Path]]) -> _Snapshot:
    by_part = dict(zip(_parts(publication), found, strict=True))
    transformer = by_part[publication.transformer]
    vqgan = next(iter(by_part[publication.vqgan].values())).parent if publication.vqgan else None
    extra_files = by_part[publication.word_frequency] if publication.word_frequency else {}
    folder = next(iter(transformer.values())).parent
    origin = {"repository": publication.transformer.repository, "revision": folder.name}
    files = tuple(path for part_files in found for path in part_files.values())
    return _Snapshot(folder, vqgan, extra_files, origin, files)


def _download(size: ModelSize, publication: Publication, target: Path, progress: Progress | None) -> _Snapshot:
    wanted: list[list[HubFile]] = []
    found: list[dict[str, Path]] = []
    commits: dict[tuple[str, str], str] = {}
    what = publication.transformer.repository
    try:
        for part in _parts(publication):
            what = part.repository
            wanted.append(on_the_hub(part, commits))
        _check_room(size, [file for files in wanted for file in files], target)
        meter = Meter(progress, sum(file.size_bytes for files in wanted for file in files))
        for files in wanted:
            found.append({})
            for file in files:
                what = f"{file.repository}/{file.name}"
                found[-1][file.name] = fetch(file, meter)
    except CheckpointError:
        raise
    except Exception as error:  # of whichever HTTP library this version of the client uses
        raise not_found(size, target, f"{what}: {first_line(error, type(error).__name__).rstrip('.')}") from error
    return _snapshot(publication, found)


def _check_room(size: ModelSize, files: list[HubFile], target: Path) -> None:
    """Before ten gigabytes are fetched for nothing. Raises CheckpointError."""
    missing = [file for file in files if not is_cached(file)]
    unpickled = [file for file in files if Path(file.name).suffix in SUFFIXES]
    needed: dict[int, tuple[Path, int]] = {}  # by file system
    for place, num_bytes in (
        (Path(constants.HF_HUB_CACHE), sum(file.size_bytes for file in missing)),
        (target, VARIANTS[size].weights_bytes + sum(file.size_bytes for file in unpickled)),
    ):
        folder = next(folder for folder in (place, *place.parents) if folder.is_dir())
        device = folder.stat().st_dev
        needed[device] = folder, needed.get(device, (folder, 0))[1] + num_bytes
    for folder, num_bytes in needed.values():
        free = shutil.disk_usage(folder).free
        if free < num_bytes:
            raise CheckpointError(
                f"{VARIANTS[size].title} needs {num_bytes / 1e9:.1f} GB on the disk of {folder} to be downloaded and"
                f" converted, and {free / 1e9:.1f} GB are free; make room, or name other places with HF_HOME and"
                f" --cache_dir"
            )


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
