"""Published forms → native, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from dalle_server.checkpoints import flax, min_dalle
from dalle_server.checkpoints.native import CONFIG, TRANSFORMER, write_native
from dalle_server.checkpoints.source import Source
from dalle_server.checkpoints.tensor_file import Progress
from dalle_server.errors import CheckpointError


class Form(Enum):
    """The forms a checkpoint folder can have."""

    NATIVE = "native"
    FLAX = "Flax"
    MIN_DALLE = "min-dalle"


def detect_form(directory: Path) -> Form:
    """Raises CheckpointError for a folder that is none of them, saying what was looked for."""
    if (directory / TRANSFORMER).is_file() and (directory / CONFIG).is_file():
        return Form.NATIVE
    if flax.is_flax_dalle(directory):
        return Form.FLAX
    if min_dalle.is_min_dalle(directory):
        return Form.MIN_DALLE
    raise CheckpointError(
        f"{directory} is no checkpoint: it has neither {CONFIG} with {TRANSFORMER} (native), nor {CONFIG} with"
        f" {flax.WEIGHTS} of a DalleBart (Flax), nor encoder.pt with decoder.pt (min-dalle)"
    )


def convert(
    source: Path | str,
    target: Path | str,
    progress: Progress | None = None,
    *,
    vqgan: Path | str | None = None,
    name: str | None = None,
    dtype: np.dtype[Any] | None = None,
    origin: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the Flax or min-dalle checkpoint `source` as a native one at `target`, whole or not at all.

    `vqgan` names the VQGAN folder when it is not where `find_vqgan` looks. `dtype` casts the
    transformer. Memory stays near the size of the largest tensor. Raises CheckpointError.
    """
    source = Path(source)
    form = detect_form(source)
    if form is Form.NATIVE:
        raise CheckpointError(f"{source} is native already")
    name = name or source.resolve().name
    target = Path(target)
    with _reading(form, source, vqgan, name, target.parent, progress) as read:
        if dtype is not None:
            read = read.cast(dtype)
        return write_native(
            target,
            read.config,
            read.transformer,
            read.vqgan,
            read.tokenizer_files,
            source={"form": form.value, **(origin or {})},
            progress=progress,
            overwrite=overwrite,
        )


@contextmanager
def _reading(
    form: Form, source: Path, vqgan: Path | str | None, name: str, scratch: Path, progress: Progress | None
) -> Iterator[Source]:
    if form is Form.FLAX:
        yield flax.read_flax(source, Path(vqgan) if vqgan else find_vqgan(source, flax.is_flax_vqgan), name)
        return
    if not vqgan:
        has_own = min_dalle.has_detokenizer(source)
        vqgan = source if has_own else find_vqgan(source, min_dalle.has_detokenizer)
    scratch.mkdir(parents=True, exist_ok=True)
    with min_dalle.read_min_dalle(source, Path(vqgan), name, scratch, progress) as read:
        yield read


def find_vqgan(directory: Path, is_vqgan: Callable[[Path], bool]) -> Path:
    """The VQGAN that belongs to a DalleBart folder: inside it, else beside it.

    In each place a folder called `vqgan` wins; otherwise there must be exactly one VQGAN folder.
    Raises CheckpointError when there is none or the choice is open.
    """
    directory = directory.resolve()
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
    try:
        return sorted(entry for entry in place.iterdir() if entry.is_dir())
    except OSError as error:
        raise CheckpointError(f"cannot look into {place}: {error}") from error
