"""The bodies, queries and replies of /v1/jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dalle_server.generation import MAX_SEED
from dalle_server.web.schemas import Body

Status = Literal["queued", "running", "done", "failed", "cancelled"]


class JobBody(Body):
    """What to draw. A seed that is left out is drawn at submission, and fixed from then on."""

    prompt: str = Field(max_length=10_000)
    num_images: int = Field(1, ge=1)
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    condition_scale: float | None = None
    negative_prompt: str = Field("", max_length=10_000)
    format: Literal["png", "jpeg", "webp"] = "png"
    preview: bool = True


class JobQuery(BaseModel):
    """The query of GET /v1/jobs."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    q: str = Field("", max_length=1_000, description="words that must all occur in the prompt or the seed")
    status: Literal["", "queued", "running", "done", "failed", "cancelled"] = ""
    with_pictures: bool = Field(False, description="only jobs that have at least one picture")
    limit: int = Field(24, ge=1, le=100)
    after: str = Field("", max_length=100, description="the id of the last job of the page before")


class JobImage(BaseModel):
    """One finished picture of a job."""

    index: int
    seed: int
    url: str
    format: str
    width_px: int
    height_px: int
    size_bytes: int


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
    seed: int
    temperature: float
    top_k: int
    top_p: float
    condition_scale: float
    negative_prompt: str
    format: str
    preview: bool
    model: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    queue_s: float | None
    total_s: float | None
    error: dict[str, Any] | None
    images: list[JobImage]


class JobList(BaseModel):
    """One page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobReply]
    has_more: bool


REQUEST_FIELDS = (*JobBody.model_fields, "model")  # of a stored request, those that a reply repeats
