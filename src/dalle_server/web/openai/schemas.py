"""Bodies and replies of the OpenAI Images API (https://platform.openai.com/docs/api-reference/images).

Ours, as extra body fields: seed, top_k, top_p, temperature, condition_scale.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from dalle_server.generation import MAX_SEED, SamplingParams
from dalle_server.pictures.codec import ImageFormat
from dalle_server.web.schemas import Body

MIN_SIDE_PX, MAX_SIDE_PX = 16, 2048
MAX_PROMPT_CHARS = 32_000


class ImageGenerationBody(Body):
    """POST /v1/images/generations."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    model: str | None = None
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = Field(None, pattern=r"^(auto|[0-9]{2,4}x[0-9]{2,4})$", description="auto or WIDTHxHEIGHT")
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="JPEG and WebP quality; PNG loses nothing")
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    top_p: float | None = Field(None, ge=1e-6, le=1.0)
    temperature: float | None = Field(None, ge=0.01, le=100.0)
    condition_scale: float | None = Field(None, ge=0.0, le=100.0)
    # Accepted, so that clients need no change; the model has one quality and one style, and paints every pixel.
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    moderation: str | None = None
    user: str | None = None

    @field_validator("size")
    @classmethod
    def _bounded(cls, size: str | None) -> str | None:
        if size not in (None, "auto") and not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in _sides(size)):
            raise ValueError(f"auto or WIDTHxHEIGHT with sides of {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels")
        return size

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, condition_scale=self.condition_scale
        )

    @property
    def format(self) -> ImageFormat:
        return ImageFormat(self.output_format or "png")

    def size_px(self, native_px: int) -> tuple[int, int]:
        """(width, height); a size left out or `auto` is the model's own."""
        return (native_px, native_px) if self.size in (None, "auto") else _sides(self.size)


def _sides(size: str) -> tuple[int, int]:
    width, height = size.split("x")
    return int(width), int(height)


class TokenDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Real tokens: those of the text that the encoder read, and the grid positions that were written."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails
    output_tokens_details: TokenDetails

    @classmethod
    def of(cls, text_tokens: int, image_tokens: int) -> Usage:
        return cls(
            input_tokens=text_tokens,
            output_tokens=image_tokens,
            total_tokens=text_tokens + image_tokens,
            input_tokens_details=TokenDetails(text_tokens=text_tokens, image_tokens=0),
            output_tokens_details=TokenDetails(text_tokens=0, image_tokens=image_tokens),
        )


class ImageData(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    seed: int
    image_index: int  # with the seed it names the noise: the i-th picture of that seed


class ImagesReply(BaseModel):
    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0  # checkpoints do not say
    owned_by: str = "dalle-server"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
