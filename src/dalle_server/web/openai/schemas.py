"""Bodies and replies of the OpenAI Images API (https://platform.openai.com/docs/api-reference/images).

Ours, as extra body fields: seed, image_index, negative_prompt, top_k, top_p, temperature, condition_scale.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dalle_server.drawing.form import Form
from dalle_server.drawing.repaint import MAX_GROW, Repaint
from dalle_server.drawing.sizes import parse_size
from dalle_server.pictures.codec import ImageFormat
from dalle_server.request import MAX_SEED, SamplingParams
from dalle_server.web.drawing import Order
from dalle_server.web.fields import MAX_PROMPT_CHARS, OverBody, SamplingBody, ShapeBody
from dalle_server.web.schemas import Body, Whole

MAX_IMAGE_INDEX = 2**31 - 1
MAX_EDIT_IMAGES = 16


def _say_empty(schema: dict[str, Any]) -> None:
    for name, field in schema.get("properties", {}).items():
        kinds = field.get("anyOf", [])
        is_text = any(kind.get("type") == "string" and "enum" not in kind for kind in kinds)
        if kinds and not is_text and name not in schema.get("required", ()):
            kinds.append({"const": ""})


class OpenAIBody(Body):
    """Base of this API's bodies. Empty text is left out: go-openai writes it for each field of a form that is unset."""

    model_config = ConfigDict(json_schema_extra=_say_empty)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_left_out(cls, value: Any, info: ValidationInfo) -> Any:
        if value != "" or cls.model_fields[info.field_name or ""].is_required():
            return value
        return None


class OutputBody(OpenAIBody, SamplingBody, ShapeBody):
    """What every request for pictures may say of them and of how they are drawn."""

    model: str | None = None
    n: Whole | None = Field(None, ge=1, le=10)
    best_of: Whole | None = Field(
        None, ge=1, description="draw so many, answer with the likeliest n, the best first; not over a given picture"
    )
    response_format: Literal["url", "b64_json", "file"] | None = None
    seamless: bool | None = Field(None, description="opposite edges meet: the picture can be tiled")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Whole | None = Field(None, ge=0, le=100, description="JPEG and WebP quality; PNG loses nothing")
    stream: bool | None = None
    partial_images: Whole | None = Field(None, ge=0, le=3)
    quality: str | None = Field(None, description="echoed")
    safety_identifier: str | None = Field(None, description="echoed")
    user: str | None = Field(None, description="the old name of safety_identifier")
    seed: Whole | None = Field(None, ge=0, le=MAX_SEED)
    image_index: Whole | None = Field(
        None, ge=0, le=MAX_IMAGE_INDEX, description="picture i of a seed, without those before it"
    )
    guidance_scale: float | None = Field(None, ge=0.0, le=100.0, description="another name of condition_scale")
    # Accepted, so that clients need no change; the model has one quality and one style, and paints every pixel.
    style: Any = None
    background: Any = None
    moderation: Any = None
    complexity: Any = None
    markup: Any = None
    input_fidelity: Any = None

    @property
    def sampling(self) -> SamplingParams:
        return super().sampling.with_defaults(SamplingParams(condition_scale=self.guidance_scale))

    @property
    def form(self) -> Form:
        return Form(
            format=ImageFormat(self.output_format or "png"),
            size_px=parse_size(self.size),
            quality=self.output_compression,
            fit=self.fit,
        )

    def order(self, prompt: str, num_tokens: int, format: ImageFormat | None = None) -> Order:
        """What is asked for, of a model whose pictures have `num_tokens`. `format`: instead of output_format."""
        return Order(
            prompt=prompt,
            num_images=self.n or 1,
            best_of=self.best_of,
            counted_as="n",
            seed=self.seed,
            first_index=self.image_index or 0,
            sampling=self.sampling,
            negative_prompt=self.negative_prompt or "",
            preview_every=self._preview_every(num_tokens),
            seamless=bool(self.seamless),
            form=self.form if format is None else replace(self.form, format=format),
        )

    def _preview_every(self, num_tokens: int) -> int:
        """Tokens between previews, so that `partial_images` of them spread evenly before the last token; 0 = none."""
        count = (self.partial_images or 0) if self.stream else 0
        return -(-num_tokens // (count + 1)) if count else 0


class RepaintBody(OutputBody, OverBody):
    """What every request for drawings over a picture may say."""

    def order_over(
        self, over: Repaint, prompt: str | None, num_tokens: int, format: ImageFormat | None = None
    ) -> Order:
        """The same of drawings over a picture, which may have words of its own."""
        prompt, negative_prompt, sampling = over.words(prompt, self.negative_prompt, self.sampling)
        order = self.order(prompt, num_tokens, format)
        seamless = order.seamless or over.is_seamless
        return replace(order, negative_prompt=negative_prompt, sampling=sampling, seamless=seamless)


class EditBody(RepaintBody):
    prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARS,
        validate_default=True,
        description="none: that of the picture, where keep_tokens makes a branch of one of ours; else required",
    )

    @field_validator("prompt")
    @classmethod
    def _there_or_told_by_the_picture(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        if prompt is None and not info.data.get("keep_tokens"):
            raise PydanticCustomError("missing", "Field required")
        return prompt


class EditForm(EditBody):
    """POST /v1/images/edits as multipart/form-data, beside the files `image` (or `image[]`) and `mask`."""

    model_config = ConfigDict(strict=False)


class VariationForm(RepaintBody):
    """POST /v1/images/variations as multipart/form-data, beside the file `image`."""

    model_config = ConfigDict(strict=False)

    prompt: str | None = Field(
        None, max_length=MAX_PROMPT_CHARS, description="none: that of the picture, if it is ours"
    )
    grow: Whole | None = Field(None, ge=0, le=MAX_GROW, description="0 or none: no mask is taken here, but in edits")


class ImageReference(OpenAIBody):
    """Exactly one of them; a file_id is refused, for no files are kept."""

    image_url: str | None = Field(None, description="a data: URL")
    file_id: str | None = None


class EditJson(EditBody):
    """POST /v1/images/edits as JSON."""

    images: list[ImageReference] = Field(min_length=1, max_length=MAX_EDIT_IMAGES)
    mask: ImageReference | None = None


class ImageGenerationBody(OutputBody):
    """POST /v1/images/generations."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    logprobs: bool | None = Field(None, description="tell how likely the model thinks each token")


class ScoreBody(OpenAIBody, SamplingBody):
    """POST /v1/images/score."""

    image: str = Field(description="base64, or a data: URL")
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    model: str | None = None


class ScoreReply(BaseModel):
    """Natural logarithms, in reading order: a map of grid_height rows of grid_width tokens."""

    object: Literal["image.score"] = "image.score"
    model: str
    grid_width: int
    grid_height: int
    total: float  # the sum of logprobs
    logprobs: list[float]  # over the whole codebook, at temperature 1 and guidance 1
    sampled_logprobs: list[float | None]  # under the sampling asked for; null: it would never have been drawn


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
    score: float | None = None  # the sum of logprobs
    logprobs: list[float] | None = None  # of each token, in reading order: whole codebook, temperature 1, guidance 1
    image_index: int  # with the seed it names the noise: the i-th picture of that seed


class ImagesReply(BaseModel):
    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    quality: str | None = None
    safety_identifier: str | None = None
    size: str
    usage: Usage
