"""What is known of a model before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["on_disk", "absent"]  # "absent": a name whose weights are fetched when it is first asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Read from a checkpoint's small files, or from the table of published models: cheap to make."""

    name: str
    title: str
    place: Place
    size_bytes: int  # of its files; about, where they are not here
    memory_bytes: int  # that it takes when it is loaded; about
    family: str = ""  # "": not known before its files are here
    image_px: int = 0
    features: tuple[str, ...] = ()
    digest: str = ""
    licence: str = ""
