"""What a checkpoint says about itself, as far as every family says it alike. No torch here.

A picture is a grid of tokens and a text is a row of ids: that is all that the engine and what stands above it ask.
What is inside a transformer, only its family knows (families/).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from dalle_server.errors import CheckpointError, ConfigError
from dalle_server.request import SamplingParams

T = TypeVar("T")
F = TypeVar("F", bound="FamilyConfig")
WINDOW_BLOCK = 32  # cached positions; a sum over an odd number of them takes another path, with other last bits
Shapes = dict[str, tuple[int, ...]]  # tensor → shape; linear weights are (out, in)


@dataclass(frozen=True, slots=True, kw_only=True)
class VQGANConfig:
    """Sizes of a VQGAN (vqgan-jax's `config.json`)."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    z_channels: int
    embed_dim: int
    n_embed: int
    resolution: int
    in_channels: int = 3
    out_ch: int = 3
    num_groups: int = 32  # the published models always use 32; a small model needs fewer
    reads_signed: bool = False  # the encoder takes pixels in −1…1 instead of 0…1

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> VQGANConfig:
        """Raises CheckpointError for a missing key or a variant we do not implement."""
        if not raw.get("resamp_with_conv", True) or raw.get("double_z", False) or raw.get("give_pre_end", False):
            raise CheckpointError("VQGAN config.json: resamp_with_conv, double_z or give_pre_end is not supported")
        listed = {key: tuple(raw[key]) for key in ("ch_mult", "attn_resolutions") if key in raw}
        return from_fields(cls, {**raw, **listed}, "VQGAN config.json")

    @property
    def scale_factor(self) -> int:
        """Pixels per token along one side."""
        return 1 << (len(self.ch_mult) - 1)

    def as_read(self, pixels: Any) -> Any:
        """What is in 0…1 as the encoder reads it. Not folded into the first convolution, whose frame is of zeros."""
        return pixels * 2 - 1 if self.reads_signed else pixels


@dataclass(frozen=True, slots=True)
class PictureConfig:
    """The grid of tokens that a picture is, written in reading order."""

    grid_height: int
    grid_width: int
    codebook_size: int  # ids 0…codebook_size-1 are pictures; a transformer's further ids are never sampled
    px_per_token: int  # along one side

    @property
    def num_tokens(self) -> int:
        return self.grid_height * self.grid_width

    @property
    def height_px(self) -> int:
        return self.grid_height * self.px_per_token

    @property
    def width_px(self) -> int:
        return self.grid_width * self.px_per_token


@dataclass(frozen=True, slots=True)
class TextConfig:
    """What a text may be once it is tokens."""

    max_length: int  # ids, special ones included
    vocab_size: int  # ids that the transformer has an embedding for


@dataclass(frozen=True, slots=True)
class Product:
    """x·Wᵀ, W the named (out, in) matrices one below the other: fewer, larger products wait less.

    `scale` multiplies the first one (the 1/√D of attention, folded into the query); `rows` cuts the result.
    `of_step`: read by every decode step; else where a text is read.
    """

    names: tuple[str, ...]
    scale: float = 1.0
    rows: int | None = None
    of_step: bool = True


class FamilyConfig(Protocol):
    """The sizes of a family's transformer: a frozen dataclass, written to config.json as it is.

    How a family is added: docs/architecture.md.
    """

    family: ClassVar[str]
    cpu_runners: ClassVar[tuple[str, ...]]  # that draw it on a CPU, beside torch, which draws every family
    int8_cache_bytes: ClassVar[int]  # of a number in keys and values, where a CPU computes in int8: 2 (float16) or 1
    licence_note: ClassVar[str]  # what whoever serves its published weights must know; may be empty

    @property
    def image_length(self) -> int:
        """Tokens of a picture."""
        ...

    @property
    def image_vocab_size(self) -> int:
        """Codebook ids that it can write."""
        ...

    @property
    def text(self) -> TextConfig: ...

    def check(self) -> None:
        """Raises CheckpointError for sizes that contradict each other."""
        ...

    def tensors(self) -> Shapes:
        """Every tensor of the transformer, in the order they are stored: to load strictly and to convert."""
        ...

    def products(self, codebook_size: int) -> dict[str, Product]:
        """Name → matrix product, of everything that a runner on a CPU computes."""
        ...

    def slot_values(self) -> int:
        """Numbers that one picture in the making keeps: keys and values of both its rows."""
        ...

    def torch_module(self) -> Any:
        """The reference implementation as a torch module, with fresh weights. Needs torch."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A whole model: transformer, VQGAN, and the sampling defaults its authors chose.

    `max_condition_scale`: beyond it the model's pictures break, so that what a client asks for by habit is held to it.
    """

    name: str
    transformer: FamilyConfig
    vqgan: VQGANConfig
    sampling: SamplingParams = field(default_factory=SamplingParams.reference_defaults)
    max_condition_scale: float | None = None

    def __post_init__(self) -> None:
        if self.picture.num_tokens != self.transformer.image_length:
            raise CheckpointError(f"image_length {self.transformer.image_length} is not a square grid")

    def to_dict(self) -> dict[str, Any]:
        """Our native `config.json`; `families.model_config` is the inverse."""
        described = {"family": self.family, **asdict(self)}
        # Written files, and digests that pictures name, are older than these words.
        if not self.vqgan.reads_signed:
            del described["vqgan"]["reads_signed"]
        if self.max_condition_scale is None:
            del described["max_condition_scale"]
        return described

    @property
    def family(self) -> str:
        return self.transformer.family

    def sizes(self, family: type[F]) -> F:
        """The transformer's, for what computes that family only. Raises ConfigError for a model of another."""
        if not isinstance(self.transformer, family):
            raise ConfigError(f"this part computes models of family {family.family}, not {self.family}")
        return self.transformer

    @property
    def num_weights(self) -> int:
        """Of the transformer."""
        return sum(math.prod(shape) for shape in self.transformer.tensors().values())

    @property
    def text(self) -> TextConfig:
        return self.transformer.text

    @property
    def picture(self) -> PictureConfig:
        side = math.isqrt(self.transformer.image_length)
        codebook_size = min(self.vqgan.n_embed, self.transformer.image_vocab_size)
        return PictureConfig(side, side, codebook_size, self.vqgan.scale_factor)


def from_fields(cls: type[T], raw: Mapping[str, Any], where: str) -> T:
    """A dataclass from what it knows of `raw`. Raises CheckpointError, with `where`, for what is missing."""
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    try:
        return cls(**{key: value for key, value in raw.items() if key in names})
    except TypeError as error:
        raise CheckpointError(f"{where}: {error}") from None
