"""From the address of a picture store to the store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from dalle_server.errors import ConfigError
from dalle_server.web.jobs.storage.files import DirectoryFiles, PictureFiles


def open_files(address: str | None, data_dir: Path) -> PictureFiles:
    """None: in data_dir. Raises OSError for a place that cannot be used, ConfigError where the library is missing."""
    if address is None:
        return DirectoryFiles(data_dir)
    if address.startswith("file:"):
        return DirectoryFiles(Path(unquote(urlsplit(address).path)))
    try:
        from dalle_server.web.jobs.storage.objects import ObjectFiles
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'dalle-server[cluster]' (--picture_store)") from None
    return ObjectFiles(address)
