"""What the bodies of several APIs say alike: how tokens are drawn, in which shape, and how over a given picture."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from dalle_server.drawing.repaint import MAX_CANDIDATES, MAX_GROW, Repaint
from dalle_server.drawing.sizes import parse_size
from dalle_server.request import SamplingParams
from dalle_server.web.schemas import Body, Whole

MAX_PROMPT_CHARS = 32_000


class SamplingBody(Body):
    """How tokens are drawn."""

    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARS)
    top_k: Whole | None = Field(None, ge=0, le=2**31 - 1)
    top_p: float | None = Field(None, ge=1e-6, le=1.0)
    temperature: float | None = Field(None, ge=0.01, le=100.0)
    condition_scale: float | None = Field(None, ge=0.0, le=100.0)

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams.of(self)


class ShapeBody(Body):
    size: str | None = Field(
        None, description="auto or WIDTHxHEIGHT", json_schema_extra={"pattern": "^(|auto|[0-9]{2,4}x[0-9]{2,4})$"}
    )
    fit: Literal["paint", "crop", "stretch"] | None = Field(
        None, description="how a size of another shape is reached; new pictures are painted in it, if nothing is said"
    )

    @field_validator("size")
    @classmethod
    def _readable(cls, size: str | None) -> str | None:
        parse_size(size)
        return size


class OverBody(Body):
    """How a given picture is drawn over."""

    strength: float | None = Field(None, ge=0.0, le=1.0, description="0 keeps the picture, 1 ignores it")
    candidates: Whole | None = Field(
        None, ge=1, le=MAX_CANDIDATES, description="drawn for each picture; the best counts"
    )
    keep_tokens: Whole | None = Field(
        None, ge=0, description="the picture's first tokens stay: it is drawn again from there"
    )
    grow: Whole | None = Field(None, ge=0, le=MAX_GROW, description="tokens around the mask that are painted too")

    def over(self, image: bytes, mask: bytes | None) -> Repaint:
        """Raises InvalidRequest, PayloadTooLarge."""
        given = {name: getattr(self, name) for name in OverBody.model_fields}
        return Repaint.read(image, mask, **{name: value for name, value in given.items() if value is not None})
