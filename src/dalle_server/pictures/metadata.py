"""What a saved picture says about itself: enough to make it again.

A PNG carries it as an iTXt chunk named `dalle-server`, JPEG and WebP as EXIF UserComment. The text is JSON, in ASCII
so that no program on its way mistakes its encoding: the request's wire form, the weights, the token grid packed to the
fewest bits an id needs (256 ids of 14 bits: 448 bytes, 600 characters), and a digest of the pixels. That is format 2;
format 1 (version 0.1.0, the request's fields side by side, in UTF-8) is read too. Format 3 is format 2 of a picture
that several windows have painted: its grid is larger than the model's, and a reader of format 2 must refuse it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dalle_server import __version__
from dalle_server.errors import InvalidRequest
from dalle_server.generation import GeneratedImage
from dalle_server.pictures.packing import MAX_TOKEN_BITS, pack_tokens, unpack_bits, unpack_tokens
from dalle_server.request import FREE, MAX_SEED, GenerationRequest, ImageKey, Pixels, SamplingParams, Tokens

PNG_KEYWORD = "dalle-server"
FORMATS = ("PNG", "JPEG", "WEBP")  # a stranger's file meets no other of Pillow's many readers
FORMAT = 2
FORMAT_OF_WINDOWS = 3
MAX_TEXT_CHARS = 4000  # of each prompt kept: the model reads 64 text tokens of it
MAX_TEXT_BYTES = 24_000  # of each in JSON, where an emoji takes twelve: EXIF ends at 64 KiB
MAX_GRID_TOKENS = 4096
# EXIF 2.32, tag UserComment: the first eight bytes name the character set; zeros leave it open (we write UTF-8).
_ASCII_COMMENT, _OPEN_COMMENT, _UNICODE_COMMENT = b"ASCII\0\0\0", b"\0" * 8, b"UNICODE\0"
_MAX_LOADED_PIXELS = 2**24  # of a PNG that is decoded to see what follows its pixels
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP"}


class DrawnOver(BaseModel):
    """How a picture was drawn over a given one. The tokens and `pixels_sha256` beside it are those of the square that
    the model painted; the file shows that square in its place, and where there was a mask, the given picture around it.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    width_px: int = Field(ge=1)  # of the given picture
    height_px: int = Field(ge=1)
    x_px: int  # where in it the square lies; it may reach beyond the edges
    y_px: int
    side_px: int = Field(ge=1)
    mask: bool
    strength: float
    candidates: int
    keep_tokens: int = 0

    @classmethod
    def of(cls, size_px: tuple[int, int], square_px: tuple[int, int, int], **told: Any) -> Self:
        """A picture of (width, height), the square's (x, y, side), and the rest by name."""
        (width, height), (x, y, side) = size_px, square_px
        return cls(width_px=width, height_px=height, x_px=x, y_px=y, side_px=side, **told)

    @property
    def is_whole(self) -> bool:
        """Whether the square is all that the file shows."""
        return not self.mask and self.side_px == self.width_px == self.height_px


class DrawnTowards(BaseModel):
    """What a picture's tokens were drawn towards, and how strongly: GenerationRequest's near_tokens and pull."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    pull: float = Field(gt=0)
    token_bits: int = Field(ge=1, le=MAX_TOKEN_BITS)
    tokens: str  # packed as the picture's own, each by one higher: 0 stands for FREE

    @classmethod
    def of(cls, request: GenerationRequest) -> Self | None:
        if not request.pull:
            return None
        packed, bits = pack_tokens(np.array(request.near_tokens, np.int32) + 1)
        return cls(pull=request.pull, token_bits=bits, tokens=packed)

    def token_grid(self, num_tokens: int) -> Tokens:
        """(I,) ids, FREE where nothing draws."""
        return unpack_tokens(self.tokens, self.token_bits, num_tokens) - 1


class PictureMetadata(BaseModel):
    """One picture's recipe: request, resolved parameters, noise key, weights, and the finished token grid."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

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
    token_bits: int = Field(ge=1, le=MAX_TOKEN_BITS)
    tokens: str
    grid_width: int = Field(0, ge=0, le=MAX_GRID_TOKENS)  # of a picture of several windows; 0: the model's own
    seamless: bool = False
    forced: str = ""  # base64 bit mask of the tokens that were given, not sampled; empty = none
    over: DrawnOver | None = None
    towards: DrawnTowards | None = None

    @classmethod
    def of(
        cls,
        request: GenerationRequest,
        sampling: SamplingParams,
        image: GeneratedImage,
        *,
        model: str,
        digest: str,
        over: DrawnOver | None = None,
        grid_width: int = 0,
    ) -> Self:
        """`sampling` is the resolved one (`Generation.sampling`), so that later defaults change nothing. `digest` is of
        the weights of a picture that does not name its own.
        """
        packed, bits = pack_tokens(image.tokens)
        forced = np.array(request.forced_tokens, dtype=np.int64) != FREE
        return cls(
            model=model,
            weights_digest=image.weights or digest,
            prompt=(prompt := _kept(request.prompt)),
            negative_prompt=(negative_prompt := _kept(request.negative_prompt)),
            text_cut=(prompt, negative_prompt) != (request.prompt, request.negative_prompt),
            seed=image.key.seed,
            image_index=image.key.index,
            **asdict(sampling),
            pixels_sha256=pixels_sha256(image.pixels),
            num_tokens=len(image.tokens),
            token_bits=bits,
            tokens=packed,
            forced=base64.b64encode(np.packbits(forced).tobytes()).decode() if forced.any() else "",
            over=over,
            towards=DrawnTowards.of(request),
            grid_width=grid_width,
            seamless=request.seamless,
        )

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        self.token_grid()
        self.request()
        if self.grid_width and self.num_tokens % self.grid_width:
            raise ValueError(f"{self.num_tokens} tokens are no whole rows of {self.grid_width}")
        return self

    @property
    def shows_its_grid(self) -> bool:
        """Whether the tokens are all that the picture shows, and no part of another picture is around them."""
        return self.over is None or self.over.is_whole

    def token_grid(self) -> Tokens:
        """(I,) ids."""
        return unpack_tokens(self.tokens, self.token_bits, self.num_tokens)

    def request(self) -> GenerationRequest:
        """The request that makes this picture again, alone, from its seed."""
        grid, forced = self.token_grid(), ()
        if self.forced:
            forced = tuple(np.where(unpack_bits(self.forced, self.num_tokens), grid, FREE).tolist())
        towards = self.towards
        near = () if towards is None else tuple(towards.token_grid(self.num_tokens).tolist())
        return GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            images=(ImageKey(self.seed, self.image_index),),
            sampling=SamplingParams.of(self),
            forced_tokens=forced,
            near_tokens=near,
            pull=0.0 if towards is None else towards.pull,
            seamless=self.seamless,
        )

    def to_json(self) -> str:
        request = self.request().to_dict()
        # A new request has a new id; given tokens are a mask of the grid, and `towards` packs the rest.
        for name in ("id", "forced_tokens", "near_tokens", "pull"):
            request.pop(name, None)
        absent = {name for name in ("over", "towards", "grid_width") if not getattr(self, name)}
        told = self.model_dump(exclude={*_OF_REQUEST, *_SAMPLING, *absent})
        return json.dumps(
            {"format": FORMAT_OF_WINDOWS if self.grid_width else FORMAT, "request": request, **told},
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValidationError, ValueError or InvalidRequest for what no format of ours holds."""
        raw, _ = json.JSONDecoder().raw_decode(text)  # programs pad what they copy
        if not isinstance(raw, dict) or raw.get("format") not in (1, FORMAT, FORMAT_OF_WINDOWS):
            known = f"1, {FORMAT} or {FORMAT_OF_WINDOWS}"
            raise InvalidRequest(f"format is not {known}; a newer version may have written it", param="image")
        if (raw["format"] == FORMAT_OF_WINDOWS) != bool(raw.get("grid_width")):
            raise InvalidRequest(f"grid_width is for format {FORMAT_OF_WINDOWS}, and belongs to it", param="image")
        if raw["format"] != 1:
            raw |= _fields_of(GenerationRequest.from_dict(raw.get("request", {})))
        return cls.model_validate(raw)


_OF_REQUEST = ("prompt", "negative_prompt", "seed", "image_index", "seamless")
_SAMPLING = ("temperature", "top_k", "top_p", "condition_scale")


def _fields_of(request: GenerationRequest) -> dict[str, Any]:
    if len(request.images) != 1:
        raise InvalidRequest(f"images: one picture has one key, not {len(request.images)}", param="image")
    (key,) = request.images
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": key.seed,
        "image_index": key.index,
        "seamless": request.seamless,
        **asdict(request.sampling),
    }


def _kept(text: str) -> str:
    text = text[:MAX_TEXT_CHARS]
    return text if len(json.dumps(text)) <= MAX_TEXT_BYTES else text[: MAX_TEXT_BYTES // 12 - 1]


def pixels_sha256(pixels: Pixels) -> str:
    """Digest of (height, width, 3) pixels in reading order."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def save_options(metadata: PictureMetadata, format: str) -> dict[str, Any]:
    """Keyword arguments for Pillow's `save` that embed the metadata; format is PNG, JPEG or WEBP."""
    text = metadata.to_json()  # ASCII
    if format == "PNG":
        chunks = PngInfo()
        chunks.add_itxt(PNG_KEYWORD, text)
        return {"pnginfo": chunks}
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = metadata.program
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII_COMMENT + text.encode()
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
    text = _read_text(source)
    try:
        return None if text is None else PictureMetadata.from_json(text)
    except (ValidationError, ValueError, RecursionError, InvalidRequest) as error:
        fault = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        reason = ": ".join([*map(str, fault["loc"]), fault["msg"]]) if fault else str(error)
        raise InvalidRequest(f"{_name(source)} holds damaged dalle-server metadata: {reason}", param="image") from None


def _read_text(source: Path | bytes | BinaryIO) -> str | None:
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            return _embedded_text(image)
    except FileNotFoundError:
        raise InvalidRequest(f"{_name(source)} does not exist; give the path of a picture", param="image") from None
    except UnidentifiedImageError:
        reason = _unidentified(source)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error)
    raise InvalidRequest(f"{_name(source)} cannot be read as a picture: {reason}", param="image")


def _unidentified(source: Path | bytes | BinaryIO) -> str:
    if isinstance(source, bytes):
        beginning = source[:8]
    elif isinstance(source, Path):
        with source.open("rb") as file:
            beginning = file.read(8)
    else:
        source.seek(0)
        beginning = source.read(8)
    kind = next((name for signature, name in _SIGNATURES.items() if beginning.startswith(signature)), None)
    return (
        f"it begins as a {kind} file does, but is damaged; get it again" if kind else "it is no PNG, JPEG or WebP file"
    )


def _name(source: Path | bytes | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "the image"


def _embedded_text(image: Image.Image) -> str | None:
    if image.format == "PNG":
        if PNG_KEYWORD not in image.info and image.width * image.height <= _MAX_LOADED_PIXELS:
            image.load()  # other programs put text, and EXIF, behind the pixels
        if PNG_KEYWORD in image.info:
            return str(image.info[PNG_KEYWORD])
    text = _comment(image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment))
    return text if text.startswith("{") and '"weights_digest"' in text else None


def _comment(comment: object) -> str:
    """The text of an EXIF UserComment, in whichever of its character sets; programs that copy it choose their own."""
    if not isinstance(comment, bytes):
        return str(comment)
    charset, text = comment[:8], comment[8:]
    if charset == _UNICODE_COMMENT:  # UTF-16, in the byte order of the file or of the program, with a mark or without
        little = text.startswith((b"\xff\xfe", b"{\0"))
        return text.decode("utf-16-le" if little else "utf-16-be", "replace").lstrip("\ufeff")
    if charset not in (_ASCII_COMMENT, _OPEN_COMMENT):
        text = comment  # without a character set
    return text.decode("utf-8", "replace")
