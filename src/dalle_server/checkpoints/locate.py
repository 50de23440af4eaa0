"""From what the user asked for to a native folder: looked up, converted once, or downloaded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dalle_server.checkpoints.cache import converted_once, default_cache_dir, is_ready, variant_dir
from dalle_server.checkpoints.checkpoint import FORMAT
from dalle_server.checkpoints.convert import CheckpointForm, convert, detect_form, find_vqgan
from dalle_server.checkpoints.tensor_file import Progress
from dalle_server.errors import WeightsNotFound
from dalle_server.variants import VARIANTS, ModelSize
from dalle_server.words import expanded

_SOURCE_SUFFIXES = {".json", ".txt", ".msgpack", ".pt", ".bin", ".safetensors"}


def find_checkpoint(
    what: ModelSize | Path | str,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    download: bool = True,
) -> Path:
    """The native folder of a named model, or of a folder of weights in any of the three forms.

    A path that is not native is converted once into `cache_dir`. A named model is, in this order: embedded
    (Nano), already converted, in the Hugging Face cache, on the hub (if `download` and not offline).
    Raises WeightsNotFound naming the ways out, CheckpointError for files that are there but damaged.
    """
    cache_dir = cache_dir or default_cache_dir()
    if isinstance(what, ModelSize):
        return _find_variant(what, cache_dir, progress, download)
    try:
        directory = expanded(what)
    except ValueError as error:
        raise WeightsNotFound(f"model_dir {what}: {error}", param="model_dir") from None
    if not directory.is_dir():
        raise WeightsNotFound(f"model_dir {directory} is not a folder", param="model_dir")
    if detect_form(directory) is CheckpointForm.NATIVE:
        return directory
    target = conversion_of(directory, cache_dir)
    return converted_once(target, lambda: convert(directory, target, progress))


def conversion_of(directory: Path, cache_dir: Path) -> Path:
    """Where the native form of this folder is kept, or will be."""
    return cache_dir / "converted" / f"{directory.resolve().name}-{_fingerprint(directory)}"


def _find_variant(size: ModelSize, cache_dir: Path, progress: Progress | None, download: bool) -> Path:
    # Imported late: the hub's client takes half a second that a converted model never needs.
    from dalle_server.checkpoints.hub import pull as hub

    directory = variant_dir(size, cache_dir)
    if is_ready(directory):
        return directory
    if VARIANTS[size].published is None:
        raise WeightsNotFound(f"this installation lacks the embedded model ({directory}): install the package again")
    found = hub.convert_downloaded(size, progress, cache_dir=cache_dir)
    if found is None and not download:
        raise hub.not_found(size, directory, "nothing is downloaded here unless --download asks for it")
    return found or hub.pull(size, progress, cache_dir=cache_dir)


def _fingerprint(directory: Path) -> str:
    """Changes when a file of the source does, so that a changed source is converted anew."""
    directory = directory.resolve()
    folders = {directory, directory / "tokenizer", directory.parent / "tokenizer"}
    if detect_form(directory) is not CheckpointForm.JANUS:  # whose VQGAN lies in the same files
        folders.add(find_vqgan(directory))
    lines = [str(FORMAT)]
    for folder in sorted(folder for folder in folders if folder.is_dir()):
        for path in sorted(folder.iterdir()):
            if path.suffix in _SOURCE_SUFFIXES and path.is_file():
                stat = path.stat()
                lines.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:12]
