"""Pictures that tell how they were made: pack, embed, read back, refuse what is damaged."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dalle_server.checks import is_blank
from dalle_server.errors import InvalidRequest
from dalle_server.generation import GeneratedImage
from dalle_server.pictures.codec import ImageFormat, encode_image
from dalle_server.pictures.metadata import (
    MAX_TEXT_BYTES,
    MAX_TEXT_CHARS,
    PictureMetadata,
    pixels_sha256,
    read_metadata,
)
from dalle_server.pictures.packing import pack_tokens, unpack_tokens
from dalle_server.request import FREE, GenerationRequest, ImageKey, SamplingParams

SAMPLING = SamplingParams(temperature=0.9, top_k=50, top_p=0.95, condition_scale=10.0)
FORMATS = list(ImageFormat)


def picture(seed: int = 5, index: int = 2, num_tokens: int = 256, codebook: int = 16384) -> GeneratedImage:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tokens = rng.integers(0, codebook, num_tokens, dtype=np.int32)
    return GeneratedImage(index=0, key=ImageKey(seed, index), pixels=pixels, tokens=tokens)


def describe(image: GeneratedImage, prompt: str = "a red apple", **request: object) -> PictureMetadata:
    asked = GenerationRequest(prompt=prompt, images=(image.key,), **request)  # type: ignore[arg-type]
    return PictureMetadata.of(asked, SAMPLING, image, model="nano", digest="ab" * 32)


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=400))
def test_packed_tokens_unpack_to_themselves(ids: list[int]) -> None:
    packed, bits = pack_tokens(np.array(ids, np.int32))
    assert unpack_tokens(packed, bits, len(ids)).tolist() == ids


def test_a_picture_names_the_weights_that_drew_it_before_those_of_its_job() -> None:
    assert describe(picture()).weights_digest == "ab" * 32
    assert describe(replace(picture(), weights="cd" * 32)).weights_digest == "cd" * 32


def test_a_mega_grid_packs_into_less_than_a_kilobyte() -> None:
    packed, bits = pack_tokens(picture().tokens)
    assert bits == 14
    assert len(packed) == 600


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_carries_the_whole_recipe(format: ImageFormat) -> None:
    image = picture()
    metadata = describe(image, negative_prompt="blurry")
    read = read_metadata(encode_image(image.pixels, format, metadata=metadata))
    assert read == metadata
    assert read.token_grid().tolist() == image.tokens.tolist()
    assert read.pixels_sha256 == pixels_sha256(image.pixels)
    request = read.request()
    assert (request.prompt, request.negative_prompt) == ("a red apple", "blurry")
    assert request.images == (ImageKey(5, 2),)
    assert request.sampling == SAMPLING


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=60, deadline=None)
@given(prompt=st.text(st.characters(codec="utf-8"), min_size=1, max_size=200).filter(lambda text: not is_blank(text)))
def test_any_unicode_prompt_survives(format: ImageFormat, prompt: str) -> None:
    image = picture(num_tokens=4)
    data = encode_image(image.pixels, format, metadata=describe(image, prompt))
    assert read_metadata(data).prompt == prompt


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("letter", ["x", "\x01", "ж", "漢", "🍎"])
def test_a_huge_prompt_is_cut_and_says_so(format: ImageFormat, letter: str) -> None:
    image = picture()
    data = encode_image(
        image.pixels, format, metadata=describe(image, "a" + letter * 50_000, negative_prompt=letter * 50_000)
    )
    read = read_metadata(data)
    assert read.text_cut
    kept = MAX_TEXT_CHARS if letter != "🍎" else MAX_TEXT_BYTES // 12 - 1
    assert read.prompt == "a" + letter * (kept - 1)
    assert len(read.to_json()) < 60_000  # EXIF ends at 64 KiB
    assert read.token_grid().tolist() == image.tokens.tolist()


def test_forced_tokens_come_back_as_forced_tokens() -> None:
    image = picture()
    forced = tuple(int(token) if i % 3 == 0 else FREE for i, token in enumerate(image.tokens))
    assert describe(image, forced_tokens=forced).request().forced_tokens == forced
    assert describe(image).request().forced_tokens == ()


def test_what_tokens_were_drawn_towards_comes_back() -> None:
    image = picture()
    near = tuple(FREE if i % 3 == 0 else (7 * i) % 16384 for i in range(256))
    told = describe(image, near_tokens=near, pull=12.5)
    read = PictureMetadata.from_json(told.to_json())
    assert read == told and (read.request().near_tokens, read.request().pull) == (near, 12.5)
    assert "towards" not in describe(image).to_json() and len(told.to_json()) < len(describe(image).to_json()) + 800
    for change in ({"pull": 0}, {"token_bits": 13}, {"tokens": "AAAA"}, {"pull": None}):
        damaged = json.loads(told.to_json())
        damaged["towards"] |= change
        with pytest.raises((ValueError, InvalidRequest)):
            PictureMetadata.from_json(json.dumps(damaged))


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_of_another_program_says_that_it_has_no_metadata(format: ImageFormat) -> None:
    with pytest.raises(InvalidRequest, match="no dalle-server metadata"):
        read_metadata(encode_image(picture().pixels, format))


def test_a_camera_comment_is_not_ours() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0{nice holiday}"
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    with pytest.raises(InvalidRequest, match="no dalle-server metadata"):
        read_metadata(file.getvalue())


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": "AAAA"},
        {"tokens": "not base64!"},
        {"num_tokens": 10**9},
        {"token_bits": 60},
        {"request": {}},
        {"request": "a red apple"},
        {"request": {"version": 1, "prompt": "a", "images": [[-1, 0]]}},
        {"request": {"version": 1, "prompt": "a", "images": [[1, 0], [1, 1]]}},
        {"request": {"version": 1, "prompt": " ", "images": [[1, 0]]}},
        {"request": {"version": 1, "prompt": "a", "images": [[1, 0]], "sampling": {"temperature": 0.0}}},
        {"request": {"version": 1, "prompt": "a", "images": [[1, 0]]}},
        {"format": 3},
        {"format": 4},
        {"grid_width": 4},
        {"format": 1},
        {"format": None},
        {"forced": "AA=="},
    ],
)
def test_damaged_metadata_is_refused(change: dict[str, object]) -> None:
    text = json.dumps(json.loads(describe(picture()).to_json()) | change)
    with pytest.raises(InvalidRequest, match="damaged") as caught:
        read_metadata(png_with(text))
    assert len(caught.value.message.splitlines()) == 1 and len(caught.value.message) < 250


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "[" * 100_000])
def test_what_is_no_metadata_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="damaged"):
        read_metadata(png_with(text))


def png_with(text: str) -> bytes:
    chunks, file = PngInfo(), io.BytesIO()
    chunks.add_itxt("dalle-server", text)
    Image.fromarray(picture().pixels).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def test_the_text_is_ascii_and_holds_the_requests_wire_form() -> None:
    text = describe(picture(), "ein Apfel 🍏", negative_prompt="漢").to_json()
    assert text.isascii()
    raw = json.loads(text)
    assert raw["format"] == 2 and raw["request"]["images"] == [[5, 2]] and "id" not in raw["request"]
    request = GenerationRequest.from_dict(raw["request"])
    assert (request.prompt, request.negative_prompt, request.sampling) == ("ein Apfel 🍏", "漢", SAMPLING)


OLD = Path(__file__).parents[1] / "data" / "pictures-0.1.0"
OLD_PROMPTS = {"png": "a red apple", "jpeg": "ein grüner Apfel 🍏", "webp": "a rocket in space"}


@pytest.mark.parametrize("suffix", OLD_PROMPTS)
def test_pictures_of_version_0_1_0_are_read(suffix: str) -> None:
    read = read_metadata(OLD / f"picture.{suffix}")
    assert (read.prompt, read.seed, read.image_index, read.model) == (OLD_PROMPTS[suffix], 7, 1, "nano")
    assert (read.temperature, read.top_k, read.num_tokens) == (0.9, 50, 64)
    assert read.negative_prompt == ("a boat" if suffix == "png" else "")
    assert PictureMetadata.from_json(read.to_json()) == read


def with_comment(comment: bytes, format: str) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.fromarray(picture().pixels).save(file, format, exif=exif.tobytes())
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        (b"UNICODE\0", "utf-16-be"),
        (b"UNICODE\0", "utf-16-le"),
        (b"UNICODE\0\xff\xfe", "utf-16-le"),
        (b"UNICODE\0\xfe\xff", "utf-16-be"),
        (b"ASCII\0\0\0", "ascii"),
        (b"\0" * 8, "utf-8"),
        (b"", "ascii"),
    ],
)
def test_comments_that_other_programs_copied(format: str, charset: bytes, encoding: str) -> None:
    metadata = describe(picture(), "ein Apfel 🍏")
    for padding in ("", "\0\0", "  "):
        data = with_comment(charset + (metadata.to_json() + padding).encode(encoding), format)
        assert read_metadata(data) == metadata


def test_text_behind_the_pixels_is_found() -> None:
    metadata = describe(picture())
    data = png_with(metadata.to_json())
    start = data.index(b"iTXt") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert read_metadata(moved) == metadata


def test_a_damaged_picture_is_not_called_another_kind_of_file() -> None:
    data = bytearray(encode_image(picture().pixels, ImageFormat.PNG))
    data[20] ^= 1  # in the header, whose checksum then differs
    with pytest.raises(InvalidRequest, match="it begins as a PNG file does, but is damaged"):
        read_metadata(bytes(data))
    with pytest.raises(InvalidRequest, match="it is no PNG, JPEG or WebP file"):
        read_metadata(b"hello, world")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1\x00\x04Ex"])
def test_what_is_no_picture_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read as a picture") as caught:
        read_metadata(data)
    assert "BytesIO" not in str(caught.value)


def test_every_truncation_is_a_clear_error_or_the_same_metadata() -> None:
    image = picture()
    metadata = describe(image)
    data = encode_image(image.pixels, ImageFormat.PNG, metadata=metadata)
    for end in range(0, len(data), 7):
        try:
            read = read_metadata(data[:end])
        except InvalidRequest:
            continue
        assert read == metadata


@pytest.mark.parametrize("format", FORMATS)
def test_flipped_bits_never_raise_anything_else(format: ImageFormat) -> None:
    data = bytearray(encode_image(picture().pixels, format, metadata=describe(picture())))
    rng = np.random.default_rng(1)
    for position in rng.integers(0, min(len(data), 3000), 400):
        data[position] ^= 1 << int(rng.integers(0, 8))
        try:
            read_metadata(bytes(data))
        except InvalidRequest:
            data[position] = rng.integers(0, 256)
