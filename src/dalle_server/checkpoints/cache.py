"""Where converted models lie, and how one process at a time makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from dalle_server import assets
from dalle_server.checkpoints.atomic import remove_partials
from dalle_server.checkpoints.native import CONFIG
from dalle_server.errors import CheckpointError
from dalle_server.variants import VARIANTS, ModelSize

EMBEDDED = Path(assets.__file__).parent / "nano"


def default_cache_dir() -> Path:
    """The user's cache directory of this program."""
    return user_cache_path("dalle-server", appauthor=False)


def variant_dir(size: ModelSize, cache_dir: Path) -> Path:
    """Where the native form of a named model is, or would be."""
    return EMBEDDED if VARIANTS[size].published is None else cache_dir / "models" / size.folder_name


def is_ready(directory: Path, file_name: str = CONFIG) -> bool:
    """Folders appear whole (see atomic.py), so one file tells."""
    return (directory / file_name).is_file()


def converted_once(target: Path, make: Callable[[], object], file_name: str = CONFIG) -> Path:
    """Run `make` unless `target` is there (has `file_name`); of several processes one does it and the others wait."""
    if not is_ready(target, file_name):
        with _locked(target):
            if not is_ready(target, file_name):
                remove_partials(target)
                make()
    return target


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(target.parent / f".{target.name}.lock").acquire()
    except OSError as error:
        raise CheckpointError(f"cannot write to {target.parent}: {error}") from error
    with held:
        yield
