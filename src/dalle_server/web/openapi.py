"""The OpenAPI 3.1 document, generated from the routes and their pydantic models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

View = TypeVar("View", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Description:
    """What the document says of one view."""

    summary: str
    body: type[BaseModel] | None = None
    reply: type[BaseModel] | None = None
    status: int = 200
    body_type: str = "application/json"  # or multipart/form-data
    reply_type: str = "application/json"  # or image/png, text/plain, …
    streams: bool = False  # may answer text/event-stream instead


def describe(
    summary: str,
    *,
    body: type[BaseModel] | None = None,
    reply: type[BaseModel] | None = None,
    status: int = 200,
    body_type: str = "application/json",
    reply_type: str = "application/json",
    streams: bool = False,
) -> Callable[[View], View]:
    """Decorates a view (below @blueprint.route) with its line in the OpenAPI document. Undescribed views stay out."""

    def mark(view: View) -> View:
        description = Description(summary, body, reply, status, body_type, reply_type, streams)
        view.__openapi__ = description  # type: ignore[attr-defined]
        return view

    return mark
