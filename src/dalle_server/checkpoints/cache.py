"""Where converted models lie, and how one process at a time makes them and what else is kept for the next start."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from dalle_server import assets
from dalle_server.checkpoints.atomic import remove_partials, replaced_directory
from dalle_server.checkpoints.digest import is_as_written, write_sums
from dalle_server.checkpoints.native import CONFIG
from dalle_server.errors import CheckpointError
from dalle_server.variants import VARIANTS, ModelSize

logger = logging.getLogger(__name__)

EMBEDDED = Path(assets.__file__).parent / "nano"


def default_cache_dir() -> Path:
    """The user's cache directory of this program."""
    return user_cache_path("dalle-server", appauthor=False)


def variant_dir(size: ModelSize, cache_dir: Path) -> Path:
    """Where the native form of a named model is, or would be."""
    return EMBEDDED if VARIANTS[size].published is None else cache_dir / "models" / size.folder_name


def is_ready(directory: Path) -> bool:
    """Folders appear whole (see atomic.py), so one file tells."""
    return (directory / CONFIG).is_file()


def converted_once(target: Path, make: Callable[[], object]) -> Path:
    """Run `make` unless `target` is there; of several processes one does it and the others wait."""
    if not is_ready(target):
        with _locked(target):
            if not is_ready(target):
                remove_partials(target)
                make()
    return target


def kept_file(folder: Path, file_name: str, write: Callable[[Path], object], needed_bytes: int = 0) -> Path:
    """The file in `folder`, whose name ends in `-v<version>`, as `write(path)` made it.

    Made where it is missing, and again, with a warning, where its content is another; of several processes one does it.
    What earlier versions kept then goes. Raises CheckpointError when it cannot be written.
    """
    file = folder / file_name
    if not is_as_written(file):
        with _locked(folder):
            if not is_as_written(file):
                if file.exists():
                    logger.warning("%s is damaged; it is made again, which takes longer than to read it", file)
                remove_partials(folder)
                with replaced_directory(folder, overwrite=True, needed_bytes=needed_bytes) as partial:
                    write(partial / file_name)
                    write_sums(partial)
                _remove_earlier(folder)
    return file


def _remove_earlier(folder: Path) -> None:
    """Later versions stay: two programs in turn would else throw away each other's. A server that still reads an
    earlier one keeps its map, or the file where the system removes none that is open.
    """
    name, _, version = folder.name.rpartition("-v")
    for other in folder.parent.glob(f"{name}-v*"):
        number = other.name.rpartition("-v")[2]
        if number.isdecimal() and int(number) < int(version):
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(target.parent / f".{target.name}.lock").acquire()
    except OSError as error:
        raise CheckpointError(f"cannot write to {target.parent}: {error}") from error
    with held:
        yield
