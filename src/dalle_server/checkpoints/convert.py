"""Published forms → native, tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from dalle_server.checkpoints.hub.damage import missing
from dalle_server.checkpoints.native import CONFIG, TRANSFORMER, write_native
from dalle_server.checkpoints.published import flax, janus, min_dalle
from dalle_server.checkpoints.published.source import PublishedSource
from dalle_server.checkpoints.tensor_file import Progress
from dalle_server.errors import CheckpointError
from dalle_server.families.dalle_bart import DalleBartConfig

logger = logging.getLogger(__name__)


class CheckpointForm(Enum):
    """The forms a checkpoint folder can have."""

    NATIVE = "native"
    FLAX = "Flax"
    MIN_DALLE = "min-dalle"
    JANUS = "Janus-Pro"


def detect_form(directory: Path) -> CheckpointForm:
    """Raises CheckpointError for a folder that is none of them, saying what was looked for."""
    entries = _entries(directory)
    if (directory / TRANSFORMER).is_file() and (directory / CONFIG).is_file():
        return CheckpointForm.NATIVE
    if flax.is_flax_dalle(directory):
        return CheckpointForm.FLAX
    if janus.is_janus(directory):
        return CheckpointForm.JANUS
    if min_dalle.is_min_dalle(directory):
        return CheckpointForm.MIN_DALLE
    for path in entries:
        if path.is_symlink() and not path.exists():
            raise CheckpointError(f"{directory} is no whole checkpoint: {missing(path)}")
    raise CheckpointError(
        f"{directory} is no checkpoint: it has neither {CONFIG} with {TRANSFORMER} (native), nor {CONFIG} with"
        f" {flax.WEIGHTS} of a DalleBart (Flax), nor encoder.pt with decoder.pt (min-dalle), nor"
        f" {CONFIG} of a Janus-Pro"
    )


def convert(
    source: Path | str,
    target: Path | str,
    progress: Progress | None = None,
    *,
    vqgan: Path | str | None = None,
    name: str | None = None,
    dtype: np.dtype[Any] | None = None,
    file_suffix: str | None = None,
    extra_files: Mapping[str, Path] | None = None,
    origin: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the Flax, min-dalle or Janus-Pro checkpoint `source` as a native one at `target`, whole or not at all.

    `vqgan` names the VQGAN folder when it is not where `find_vqgan` looks. `dtype` casts the
    transformer. `file_suffix` chooses between the two models of a min-dalle folder. `extra_files` (name → file)
    are copied. Memory stays near the size of the largest tensor. Raises CheckpointError.
    """
    source = Path(source)
    form = detect_form(source)
    if form is CheckpointForm.NATIVE:
        raise CheckpointError(f"{source} is native already")
    name = name or source.resolve().name
    target = Path(target)
    with _reading(form, source, vqgan, name, file_suffix, target, progress) as read:
        _warn_of_foreign_codebook(read)
        if dtype is not None:
            read = read.cast(dtype)
        return write_native(
            target,
            read.config,
            read.transformer,
            read.vqgan,
            {**read.tokenizer_files, **(extra_files or {})},
            source={"form": form.value, **(origin or {})},
            progress=progress,
            overwrite=overwrite,
        )


def _warn_of_foreign_codebook(read: PublishedSource) -> None:
    if not isinstance(read.config.transformer, DalleBartConfig):
        return
    num_codes, start = read.config.vqgan.n_embed, read.config.transformer.decoder_start_token_id
    if num_codes < start:
        logger.warning(
            "%s was trained on more codes (its start token is %d) than this VQGAN has (%d): is it the right one?",
            read.config.name,
            start,
            num_codes,
        )


@contextmanager
def _reading(
    form: CheckpointForm,
    source: Path,
    vqgan: Path | str | None,
    name: str,
    file_suffix: str | None,
    target: Path,
    progress: Progress | None,
) -> Iterator[PublishedSource]:
    if form is CheckpointForm.FLAX:
        yield flax.read_flax(source, Path(vqgan) if vqgan else find_vqgan(source), name)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write to {target.parent}: {error}") from error
    if form is CheckpointForm.JANUS:  # its VQGAN lies in the same files
        with janus.read_janus(source, name, target, progress) as read:
            yield read
        return
    vqgan = Path(vqgan) if vqgan else find_vqgan(source)
    with min_dalle.read_min_dalle(source, vqgan, name, target, file_suffix, progress) as read:
        yield read


def find_vqgan(directory: Path) -> Path:
    """The VQGAN that belongs to a DalleBart folder, in the same form: inside it, else beside it.

    In each place a folder called `vqgan` wins; otherwise there must be exactly one VQGAN folder. A min-dalle
    folder usually holds its own `detoker.pt`. Raises CheckpointError when there is none or the choice is open.
    """
    directory = directory.resolve()
    is_vqgan: Callable[[Path], bool] = flax.is_flax_vqgan
    if detect_form(directory) is CheckpointForm.MIN_DALLE:
        is_vqgan = min_dalle.has_detokenizer
        if is_vqgan(directory):
            return directory
    for place in (directory, directory.parent):
        if is_vqgan(place / "vqgan"):
            return place / "vqgan"
        found = [folder for folder in _folders(place) if is_vqgan(folder)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(folder.name for folder in found)
            raise CheckpointError(
                f"{place} holds several VQGANs ({names}): put the right one into {directory / 'vqgan'}"
            )
    raise CheckpointError(
        f"no VQGAN for {directory}: put its folder into {directory / 'vqgan'} (or beside, as `vqgan`)"
    )


def _folders(place: Path) -> Iterable[Path]:
    return [entry for entry in _entries(place) if entry.is_dir()]


def _entries(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError as error:
        raise CheckpointError(f"cannot look into {place}: {error}") from error
