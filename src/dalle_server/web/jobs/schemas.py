"""The bodies, queries and replies of /v1/jobs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticUseDefault

from dalle_server.drawing.form import Form
from dalle_server.pictures.codec import ImageFormat
from dalle_server.request import MAX_SEED
from dalle_server.web.fields import OverBody, SamplingBody, ShapeBody
from dalle_server.web.jobs.storage.records import Job
from dalle_server.web.schemas import Body, Whole, alternatives

MAX_JOB_PROMPT_CHARS = 10_000
MAX_SEARCH_CHARS = 200
MAX_SEARCH_WORDS = 16

Status = Literal["queued", "running", "done", "failed", "cancelled"]


class GalleryPicture(Body):
    """A finished picture of one of your own jobs."""

    job: str = Field(max_length=100)
    index: Whole = Field(0, ge=0)


ImageField = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[GalleryPicture, Tag("<picture>")],
    Discriminator(lambda value: "<picture>" if isinstance(value, (dict, GalleryPicture)) else "<text>"),
]


def _say_null(schema: dict[str, Any]) -> None:
    """Whatever is not required may be null, which is left out."""
    for field in schema.get("properties", {}).values():
        if {"type": "null"} not in (kinds := alternatives(field)):
            kinds.append({"type": "null"})


class JobFields(SamplingBody, ShapeBody, OverBody):
    """What to draw. A seed that is left out is drawn at submission, and fixed from then on."""

    model_config = ConfigDict(json_schema_extra=_say_null)

    prompt: str = Field("", max_length=MAX_JOB_PROMPT_CHARS, description="none over a picture of ours: its own")
    negative_prompt: str | None = Field(None, max_length=MAX_JOB_PROMPT_CHARS)
    num_images: Whole = Field(1, ge=1)
    best_of: Whole | None = Field(None, ge=1, description="draw so many, keep the likeliest num_images, the best first")
    model: str | None = Field(None, max_length=200, description="of /v1/models; none: the first")
    seed: Annotated[Whole, Field(ge=0, le=MAX_SEED)] | None = None
    format: Literal["png", "jpeg", "webp"] = "png"
    preview: bool = True
    seamless: bool = Field(False, description="opposite edges meet: the picture can be tiled")

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_left_out(cls, value: Any) -> Any:
        if value is None:
            raise PydanticUseDefault
        return value

    @property
    def form(self) -> Form:
        return Form.of(self.size, self.fit, ImageFormat(self.format))


class JobBody(JobFields):
    """POST /v1/jobs as JSON."""

    image: ImageField | None = Field(
        None, description="to draw over: base64, a data: URL, or a finished picture of your own"
    )
    mask: str | None = Field(None, description="what of `image` is painted anew: base64, or a data: URL")


class JobForm(JobFields):
    """POST /v1/jobs as multipart/form-data, beside the files `image` and `mask`."""

    model_config = ConfigDict(strict=False)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_left_out(cls, value: Any, info: ValidationInfo) -> Any:
        """As browsers send a field that nobody filled in; an empty negative prompt says something."""
        if value == "" and info.field_name != "negative_prompt":
            raise PydanticUseDefault
        return value


class JobQuery(BaseModel):
    """The query of GET /v1/jobs."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    q: str = Field(
        "",
        max_length=MAX_SEARCH_CHARS,
        description=f"up to {MAX_SEARCH_WORDS} words that must all occur in the prompt or the seed",
    )
    status: Literal["", "queued", "running", "done", "failed", "cancelled"] = ""
    with_pictures: bool = Field(False, description="only jobs that have at least one picture")
    limit: int = Field(24, ge=1, le=100)
    after: str = Field("", max_length=100, description="the id of the last job of the page before")

    @field_validator("q", "after")
    @classmethod
    def _without_nul(cls, text: str) -> str:
        return text.replace("\0", " ")

    @field_validator("q")
    @classmethod
    def _few_words(cls, text: str) -> str:
        if len(text.split()) > MAX_SEARCH_WORDS:
            raise ValueError(f"at most {MAX_SEARCH_WORDS} words")
        return text

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.q.split())


class JobImage(BaseModel):
    """One finished picture of a job."""

    index: int
    image_index: int  # with the seed it names the noise: the i-th picture of that seed
    score: float | None  # of the chosen ones of best_of: the sum of its tokens' logprobs
    seed: int
    seed_text: str  # the same: JavaScript rounds whole numbers above 2⁵³
    url: str
    format: str
    width_px: int
    height_px: int
    size_bytes: int


class JobOver(BaseModel):
    """The picture that a job draws over, and how."""

    image_url: str
    mask_url: str | None
    width_px: int
    height_px: int
    strength: float
    candidates: int
    keep_tokens: int


class JobReply(BaseModel):
    """One job. Times are Unix seconds; `position` counts the pictures ahead of it."""

    id: str
    object: Literal["job"] = "job"
    status: Status
    position: int | None
    tokens_done: int | None
    num_tokens: int | None
    eta_s: float | None
    prompt: str
    num_images: int
    best_of: int | None  # so many are drawn, and the likeliest num_images of them kept
    seed: int
    seed_text: str
    temperature: float
    top_k: int
    top_p: float
    condition_scale: float
    negative_prompt: str
    format: str
    size: str | None  # WIDTHxHEIGHT; null: the model's own, or that of the given picture
    fit: str | None
    preview: bool
    seamless: bool
    model: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    queue_s: float | None
    total_s: float | None
    error: dict[str, Any] | None
    over: JobOver | None
    images: list[JobImage]


class JobList(BaseModel):
    """One page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobReply]
    has_more: bool


def reply_of(job: Job, progress: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    """A JobReply. `progress` has position, tokens_done, num_tokens and eta_s; `images` are JobImages."""
    plain = ("id", "status", "format", "preview", "model", "created_at", "started_at", "finished_at", "queue_s")
    request = job.request
    return {
        **{name: getattr(job, name) for name in (*plain, "total_s", "error", "best_of")},
        **progress,
        **asdict(request.sampling),
        "object": "job",
        "prompt": request.prompt,
        "num_images": len(request.images),
        "seed": job.seed,
        "seed_text": str(job.seed),
        "negative_prompt": request.negative_prompt,
        "size": None if job.form.size_px is None else "x".join(map(str, job.form.size_px)),
        "fit": job.form.fit,
        "seamless": request.seamless,
        "over": _over(job),
        "images": images,
    }


def _over(job: Job) -> dict[str, Any] | None:
    if job.over is None:
        return None
    names = ("width_px", "height_px", "strength", "candidates", "keep_tokens")
    files = f"/v1/jobs/{job.id}/given"
    mask = f"{files}/mask" if job.over.has_mask_file else None
    return {"image_url": f"{files}/image", "mask_url": mask, **{name: getattr(job.over.told, name) for name in names}}
