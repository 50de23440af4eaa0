"""Settings: one definition gives flags, DALLE_* environment, TOML file and docs/configuration.md. A leaf."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field

DEFAULT_IMG_OUTPUT_DIR = "generations"


class Settings(BaseModel):
    """Everything an operator can set. Immutable; `model_copy(update=…)` makes a changed one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    host: str = "0.0.0.0"
    port: int = Field(8000, ge=0, le=65535)
    model_version: Literal["nano", "mini", "mega", "mega_full"] = "mini"
    model_dir: Path | None = None
    save_to_disk: bool = False
    img_format: Literal["JPEG", "PNG"] = "JPEG"
    output_dir: Path = Path(DEFAULT_IMG_OUTPUT_DIR)
    max_images: int = Field(16, ge=1)
    runner: Literal["auto", "torch", "openvino"] = "auto"
    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    num_threads: int | None = Field(None, ge=1)
    num_slots: int | None = Field(None, ge=1)
    max_waiting_images: int = Field(64, ge=1)
    request_timeout_s: float = Field(600.0, gt=0)
    drain_timeout_s: float = Field(25.0, ge=0)
    api_keys: tuple[str, ...] = ()
    rate_limit: int = Field(0, ge=0)
    cors_origins: tuple[str, ...] = ("*",)
    max_json_bytes: int = Field(64 * 1024, ge=1024)
    max_upload_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    data_dir: Path = Field(default_factory=lambda: user_data_path("dalle-server", appauthor=False))
    job_retention_s: float = Field(7 * 86_400.0, gt=0)
    url_ttl_s: float = Field(3_600.0, gt=0)
    log_prompts: bool = False
