"""Bodies and replies of the AUTOMATIC1111 web UI's API, as far as its clients use them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from dalle_server.generation import MAX_SEED
from dalle_server.web.openai.schemas import MAX_PROMPT_CHARS, MAX_SIDE_PX, MIN_SIDE_PX
from dalle_server.web.schemas import Body

MAX_IMAGES = 1024  # the most that the setting max_images can allow; a product of two such numbers can be shown


class OverrideSettings(Body):
    sd_model_checkpoint: str | None = None


class Txt2ImgBody(Body):
    """POST /sdapi/v1/txt2img. Steps, samplers, high-resolution passes and the rest are for diffusion: ignored."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARS)
    batch_size: int | None = Field(None, ge=1, le=MAX_IMAGES, description="pictures of one run")
    n_iter: int | None = Field(None, ge=1, le=MAX_IMAGES, description="runs")
    width: int | None = Field(None, ge=MIN_SIDE_PX, le=MAX_SIDE_PX)
    height: int | None = Field(None, ge=MIN_SIDE_PX, le=MAX_SIDE_PX)
    cfg_scale: float | None = Field(None, ge=0.0, le=100.0, description="our condition_scale")
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="-1 = random; picture i has seed + i")
    send_images: bool | None = None
    override_settings: OverrideSettings | None = None


class Txt2ImgReply(BaseModel):
    images: list[str]  # base64 PNG
    parameters: dict[str, Any]
    info: str  # JSON


class ProgressQuery(BaseModel):
    """The query of GET /sdapi/v1/progress."""

    skip_current_image: bool = Field(False, description="leave the picture so far out")


class ProgressState(BaseModel):
    skipped: bool = False
    interrupted: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressReply(BaseModel):
    progress: float = 0.0
    eta_relative: float = 0.0
    state: ProgressState = ProgressState()
    current_image: str | None = None
    textinfo: str | None = None


class Empty(BaseModel):
    pass


class OptionsBody(Body):
    sd_model_checkpoint: str | None = None


class OptionsReply(BaseModel):
    sd_model_checkpoint: str


class ModelItem(BaseModel):
    title: str
    model_name: str
    hash: str
    sha256: str
    filename: str
    config: str | None = None


class SamplerItem(BaseModel):
    name: str
    aliases: list[str]
    options: dict[str, str]


class SchedulerItem(BaseModel):
    name: str
    label: str
    aliases: list[str] | None = None
    default_rho: float = -1.0
    need_inner_model: bool = False


class UpscalerItem(BaseModel):
    name: Literal["None", "Lanczos"]
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float = 4.0


class LatentModeItem(BaseModel):
    name: str


class VaeItem(BaseModel):
    model_name: str
    filename: str


class PngInfoBody(Body):
    image: str = Field(description="base64, or a data URL")


class PngInfoReply(BaseModel):
    info: str
    items: dict[str, str]
    parameters: dict[str, Any]
