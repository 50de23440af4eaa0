"""Bodies and replies of the AUTOMATIC1111 web UI's API, as far as its clients use them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, RootModel

from dalle_server.checks import is_blank
from dalle_server.drawing.repaint import MAX_CANDIDATES
from dalle_server.drawing.sizes import MAX_SIDE_PX, MIN_SIDE_PX, check_sides
from dalle_server.errors import InvalidRequest
from dalle_server.request import MAX_SEED
from dalle_server.web.fields import MAX_PROMPT_CHARS
from dalle_server.web.pool.model import ModelState
from dalle_server.web.schemas import LenientBody, LenientWhole

MAX_IMAGES = 1024  # the most that the setting max_images can allow; a product of two such numbers can be shown


class Txt2ImgBody(LenientBody):
    """POST /sdapi/v1/txt2img. Steps, samplers, scripts and the rest are for diffusion: ignored."""

    prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARS, description="none: the model paints what it likes")
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARS)
    batch_size: LenientWhole | None = Field(None, ge=1, le=MAX_IMAGES, description="pictures of one run")
    n_iter: LenientWhole | None = Field(None, ge=1, le=MAX_IMAGES, description="runs")
    width: LenientWhole | None = Field(None, ge=MIN_SIDE_PX, le=MAX_SIDE_PX)
    height: LenientWhole | None = Field(None, ge=MIN_SIDE_PX, le=MAX_SIDE_PX)
    enable_hr: bool | None = Field(None, description="enlarge by hr_scale, or to hr_resize_x and hr_resize_y")
    hr_scale: float | None = Field(None, ge=0, le=16)
    hr_resize_x: LenientWhole | None = Field(None, ge=0, le=MAX_SIDE_PX)
    hr_resize_y: LenientWhole | None = Field(None, ge=0, le=MAX_SIDE_PX)
    cfg_scale: float | None = Field(None, ge=0.0, le=100.0, description="condition_scale, as far as the model bears it")
    seed: LenientWhole | None = Field(None, le=MAX_SEED, description="negative = random; picture i has seed + i")
    send_images: bool | None = None
    override_settings: dict[str, Any] | None = Field(None, description="of it, sd_model_checkpoint counts")
    override_settings_restore_afterwards: bool | None = Field(None, description="false: later requests keep them")
    tiling: bool | None = Field(None, description="opposite edges meet")
    best_of: LenientWhole | None = Field(
        None, ge=1, le=MAX_IMAGES, description="draw so many, answer with the likeliest"
    )

    @property
    def words(self) -> str:
        """The prompt; empty where it says nothing."""
        return "" if self.prompt is None or is_blank(self.prompt) else self.prompt

    @property
    def checkpoint(self) -> str | None:
        """The name in override_settings."""
        name = (self.override_settings or {}).get("sd_model_checkpoint")
        return name if isinstance(name, str) and name.strip() else None

    @property
    def num_images(self) -> int:
        return (self.batch_size or 1) * (self.n_iter or 1)

    def size_px(self, native_px: int) -> tuple[int, int] | None:
        """(width, height) of the files; None: the model's own. Raises InvalidRequest."""
        size = (self.width or native_px, self.height or native_px)
        if self.enable_hr:
            size = self._enlarged(*size)
        try:
            check_sides(*size)
        except ValueError as error:
            raise InvalidRequest(f"the size must be {error}, not {size[0]}x{size[1]}", param="width") from None
        return size

    def _enlarged(self, width: int, height: int) -> tuple[int, int]:
        """As the web UI does: hr_resize_x and _y, where one that is 0 follows from the other, else hr_scale."""
        x, y = self.hr_resize_x or 0, self.hr_resize_y or 0
        if not x and not y:
            scale = self.hr_scale or 2.0
            return round(width * scale), round(height * scale)
        return x or round(y * width / height), y or round(x * height / width)


class Img2ImgBody(Txt2ImgBody):
    """POST /sdapi/v1/img2img. `inpainting_fill` has no meaning here: what is repainted is drawn by the model alone."""

    init_images: list[str] = Field(min_length=1, description="base64 or data URLs; the first is drawn over")
    mask: str | None = Field(None, description="white (or opaque, where something is transparent) is repainted")
    mask_blur: float | None = Field(None, ge=0, le=256, description="pixels inside the mask's border that are blended")
    inpainting_fill: LenientWhole | None = None
    inpaint_full_res: bool | None = Field(None, description="the model sees the mask's surroundings only, larger")
    inpaint_full_res_padding: LenientWhole | None = Field(
        None, ge=0, le=4096, description="pixels of them on each side"
    )
    inpainting_mask_invert: LenientWhole | None = None
    denoising_strength: float | None = Field(None, ge=0, le=1, description="0 keeps the picture, 1 ignores it")
    resize_mode: LenientWhole | None = Field(None, ge=0, le=3, description="1 cuts to the asked shape; others stretch")
    candidates: LenientWhole | None = Field(
        None, ge=1, le=MAX_CANDIDATES, description="drawn for each; the best counts"
    )


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
    stopping_generation: bool = False
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


class EmptyList(RootModel[list[str]]):
    pass


class Nothing(RootModel[None]):
    """The answer `null`."""


class OptionsBody(LenientBody):
    sd_model_checkpoint: str | None = None


class OptionsReply(BaseModel):
    """Those of the web UI's several hundred options that its clients read, as they are here."""

    sd_model_checkpoint: str
    sd_checkpoint_hash: str
    sd_vae: str = "Automatic"
    samples_format: str = "png"
    samples_save: bool = False
    grid_format: str = "png"
    grid_save: bool = False
    enable_pnginfo: bool = True
    CLIP_stop_at_last_layers: int = 1
    eta_noise_seed_delta: int = 0
    live_previews_enable: bool = True
    show_progress_every_n_steps: int = 1


class CheckpointItem(BaseModel):
    title: str
    model_name: str
    hash: str
    sha256: str
    filename: str
    config: str | None = None
    state: ModelState  # these two are ours
    size_bytes: int


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
    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float = 4.0


class VaeItem(BaseModel):
    model_name: str
    filename: str


class PngInfoBody(LenientBody):
    image: str = Field(description="base64, or a data URL")


class PngInfoReply(BaseModel):
    info: str
    items: dict[str, str]
    parameters: dict[str, Any]
