"""What a saved picture says about itself: enough to make it again.

A PNG carries it as an iTXt chunk named `dalle-server`, JPEG and WebP as EXIF UserComment. The text is JSON;
its token grid is packed to the fewest bits an id needs (256 ids of 14 bits: 448 bytes, 600 characters).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dalle_server import __version__
from dalle_server.errors import InvalidRequest
from dalle_server.generation import (
    FREE,
    MAX_SEED,
    GeneratedImage,
    GenerationRequest,
    ImageKey,
    Pixels,
    SamplingParams,
    Tokens,
)

PNG_KEYWORD = "dalle-server"
FORMATS = ("PNG", "JPEG", "WEBP")  # a stranger's file meets no other of Pillow's many readers
MAX_TEXT_CHARS = 4000  # of each prompt kept: EXIF ends at 64 KiB, and the model reads 64 text tokens of it
MAX_GRID_TOKENS = 4096
_MAX_TOKEN_BITS = 16
# EXIF 2.32, tag UserComment: the first eight bytes name the character set; zeros leave it open (we write UTF-8).
_ASCII_COMMENT, _OPEN_COMMENT = b"ASCII\0\0\0", b"\0" * 8


def pack_tokens(tokens: Tokens) -> tuple[str, int]:
    """(I,) ids → base64 of their bits, most significant first, and the bits of one id."""
    bits = max(1, int(tokens.max()).bit_length())
    wide = np.unpackbits(tokens.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    return base64.b64encode(np.packbits(wide[:, _MAX_TOKEN_BITS - bits :]).tobytes()).decode(), bits


def unpack_tokens(packed: str, bits: int, count: int) -> Tokens:
    """Inverse of pack_tokens. Raises ValueError when the text is not `count` ids of `bits` bits."""
    flat = _unpack_bits(packed, count * bits).reshape(count, bits).astype(np.int32)
    return np.asarray(flat @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int32)), dtype=np.int32)


def _unpack_bits(packed: str, count: int) -> NDArray[np.uint8]:
    try:
        raw = base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    if len(raw) != -(-count // 8):
        raise ValueError(f"{len(raw)} bytes cannot hold {count} bits")
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=count)


class PictureMetadata(BaseModel):
    """One picture's recipe: request, resolved parameters, noise key, weights, and the finished token grid."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    program: str = f"dalle-server {__version__}"
    model: str
    weights_digest: str
    prompt: str
    negative_prompt: str = ""
    text_cut: bool = False  # a prompt was longer than MAX_TEXT_CHARS and is kept in part
    seed: int = Field(ge=0, le=MAX_SEED)
    image_index: int = Field(ge=0)
    temperature: float
    top_k: int
    top_p: float
    condition_scale: float
    pixels_sha256: str  # of the picture as the model painted it, before resizing and compression
    num_tokens: int = Field(ge=1, le=MAX_GRID_TOKENS)
    token_bits: int = Field(ge=1, le=_MAX_TOKEN_BITS)
    tokens: str
    forced: str = ""  # base64 bit mask of the tokens that were given, not sampled; empty = none

    @classmethod
    def of(
        cls, request: GenerationRequest, sampling: SamplingParams, image: GeneratedImage, *, model: str, digest: str
    ) -> Self:
        """`sampling` is the resolved one (`Generation.sampling`), so that later defaults change nothing."""
        packed, bits = pack_tokens(image.tokens)
        forced = np.array(request.forced_tokens, dtype=np.int64) != FREE
        return cls(
            model=model,
            weights_digest=digest,
            prompt=request.prompt[:MAX_TEXT_CHARS],
            negative_prompt=request.negative_prompt[:MAX_TEXT_CHARS],
            text_cut=max(len(request.prompt), len(request.negative_prompt)) > MAX_TEXT_CHARS,
            seed=image.key.seed,
            image_index=image.key.index,
            **_sampling_fields(sampling),
            pixels_sha256=pixels_sha256(image.pixels),
            num_tokens=len(image.tokens),
            token_bits=bits,
            tokens=packed,
            forced=base64.b64encode(np.packbits(forced).tobytes()).decode() if forced.any() else "",
        )

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        self.token_grid()
        self.request()
        return self

    def token_grid(self) -> Tokens:
        """(I,) ids."""
        return unpack_tokens(self.tokens, self.token_bits, self.num_tokens)

    def request(self) -> GenerationRequest:
        """The request that makes this picture again, alone, from its seed."""
        grid, forced = self.token_grid(), ()
        if self.forced:
            forced = tuple(np.where(_unpack_bits(self.forced, self.num_tokens), grid, FREE).tolist())
        return GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            images=(ImageKey(self.seed, self.image_index),),
            sampling=SamplingParams(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                condition_scale=self.condition_scale,
            ),
            forced_tokens=forced,
        )

    def to_json(self) -> str:
        return self.model_dump_json()


def _sampling_fields(sampling: SamplingParams) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "condition_scale")}


def pixels_sha256(pixels: Pixels) -> str:
    """Digest of (height, width, 3) pixels in reading order."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def save_options(metadata: PictureMetadata, format: str) -> dict[str, Any]:
    """Keyword arguments for Pillow's `save` that embed the metadata; format is PNG, JPEG or WEBP."""
    text = metadata.to_json()
    if format == "PNG":
        chunks = PngInfo()
        chunks.add_itxt(PNG_KEYWORD, text)
        return {"pnginfo": chunks}
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = metadata.program
    charset = _ASCII_COMMENT if text.isascii() else _OPEN_COMMENT
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = charset + text.encode()
    return {"exif": exif.tobytes()}


def read_metadata(source: Path | bytes | BinaryIO) -> PictureMetadata:
    """Read what `save_options` wrote. Raises InvalidRequest when the file is no picture or tells nothing."""
    metadata = find_metadata(source)
    if metadata is None:
        raise InvalidRequest(
            f"{_name(source)} holds no dalle-server metadata; it was made by another program, or something on its "
            "way (a chat, an editor, a re-encoding) stripped it",
            param="image",
        )
    return metadata


def find_metadata(source: Path | bytes | BinaryIO) -> PictureMetadata | None:
    """The same, but None for a picture that tells nothing."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            text = _embedded_text(image)
    except FileNotFoundError:
        raise InvalidRequest(f"{_name(source)} does not exist; give the path of a picture", param="image") from None
    except UnidentifiedImageError:
        known = "it is not a PNG, JPEG or WebP file"
        raise InvalidRequest(f"{_name(source)} cannot be read as a picture: {known}", param="image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"{_name(source)} cannot be read as a picture: {error}", param="image") from None
    try:
        return None if text is None else PictureMetadata.model_validate_json(text)
    except (ValidationError, InvalidRequest) as error:
        fault = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        reason = ": ".join([*map(str, fault["loc"]), fault["msg"]]) if fault else str(error)
        raise InvalidRequest(f"{_name(source)} holds damaged dalle-server metadata: {reason}", param="image") from None


def _name(source: Path | bytes | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "the image"


def _embedded_text(image: Image.Image) -> str | None:
    if image.format == "PNG":
        text = image.info.get(PNG_KEYWORD)
        return None if text is None else str(text)
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if not isinstance(comment, bytes) or comment[:8] not in (_ASCII_COMMENT, _OPEN_COMMENT):
        return None
    text = comment[8:].decode("utf-8", "replace")
    return text if text.startswith("{") and '"weights_digest"' in text else None
