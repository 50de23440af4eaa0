"""Edits and variations: the official client unmodified, Open WebUI's call, the JSON form of 2026, and bad input."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from dalle_server.pictures.metadata import read_metadata
from dalle_server.request import GenerationRequest, Pixels
from tests.fake_runner import FakeRunner, fake_config
from tests.web.live import Live, live

SIDE_PX = 16 * 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("data"), FakeRunner(fake_config(grid_side=16))) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none needed", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def photo() -> Pixels:
    """Larger than the model paints, and no square."""
    smooth = Image.fromarray(np.random.default_rng(3).integers(0, 256, (12, 18, 3), dtype=np.uint8))
    return np.asarray(smooth.resize((360, 240), Image.Resampling.BICUBIC))


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def hole(size: tuple[int, int], box: tuple[int, int, int, int]) -> Any:
    """RGBA: transparent where it is to be repainted."""
    mask = np.full((size[1], size[0], 4), 255, np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right, 3] = 0
    return mask


def pixels_of(text: str | None) -> Pixels:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


BOX = (100, 60, 220, 150)


def test_the_official_client_repaints_a_mask_and_nothing_else(client: openai.OpenAI, photo: Pixels) -> None:
    reply = client.images.edit(
        image=("photo.png", png(photo)),
        mask=("mask.png", png(hole((360, 240), BOX))),
        prompt="a red apple",
        model="gpt-image-2",
        n=2,
        size="auto",
        extra_body={"seed": 7},
    )
    assert reply.data is not None and len(reply.data) == 2
    assert reply.size == "360x240"
    inside = (slice(BOX[1], BOX[3]), slice(BOX[0], BOX[2]))
    pictures = [pixels_of(each.b64_json) for each in reply.data]
    for picture in pictures:
        outside = np.ones((240, 360), bool)
        outside[inside] = False
        assert np.array_equal(picture[outside], photo[outside])
        assert np.abs(picture[inside].astype(int) - photo[inside]).mean() > 10
    assert not np.array_equal(pictures[0], pictures[1])
    told = read_metadata(base64.b64decode(reply.data[0].b64_json or ""))
    assert (told.prompt, told.seed, told.forced != "") == ("a red apple", 7, True)


def test_a_stream_of_an_edit_has_its_own_events(client: openai.OpenAI, photo: Pixels, server: Live) -> None:
    server.runner.step_s = 0.003
    try:
        events = list(
            client.images.edit(
                image=png(photo), mask=png(hole((360, 240), BOX)), prompt="x", stream=True, partial_images=2,
                extra_body={"seed": 7, "candidates": 2},
            )
        )  # fmt: skip
    finally:
        server.runner.step_s = 0.0
    assert events[-1].type == "image_edit.completed"
    assert {event.type for event in events[:-1]} <= {"image_edit.partial_image"}
    plain = client.images.edit(
        image=png(photo), mask=png(hole((360, 240), BOX)), prompt="x", extra_body={"seed": 7, "candidates": 2}
    )
    assert plain.data is not None and plain.data[0].b64_json == events[-1].b64_json
    assert plain.usage is not None and events[-1].usage.output_tokens == plain.usage.output_tokens
    for event in events:
        assert pixels_of(event.b64_json).shape == (240, 360, 3)


def test_a_picture_with_holes_is_its_own_mask(client: openai.OpenAI, photo: Pixels) -> None:
    holed = np.dstack([photo, hole((360, 240), BOX)[:, :, 3]])
    reply = client.images.edit(image=png(holed), prompt="x", extra_body={"seed": 1})
    assert reply.data is not None
    picture = pixels_of(reply.data[0].b64_json)
    kept = holed[:, :, 3] == 255
    assert np.array_equal(picture[kept], photo[kept])


def test_open_webui_sends_several_fields_and_one_picture(server: Live, photo: Pixels) -> None:
    """backend/open_webui/routers/images.py, its OpenAI engine: multipart, image[] and the fields as text."""
    fields = {
        "model": "gpt-image-1",
        "prompt": "make it blue",
        "n": "1",
        "size": "256x256",
        "response_format": "b64_json",
    }
    reply = post_form(server, "edits", fields, [("image[]", png(photo[:240, :240]))])
    (data,) = reply["data"]
    assert pixels_of(data["b64_json"]).shape == (256, 256, 3)


@pytest.mark.parametrize("path", ["edits", "variations"])
def test_go_openai_writes_what_is_unset_as_empty_fields(server: Live, photo: Pixels, path: str) -> None:
    """Its CreateEditImage and CreateVariImage write `response_format` always; others write every field."""
    words = {"prompt": "x"} if path == "edits" else {}
    plain = words | {"n": "1", "size": "256x256", "seed": "3"}
    empty = dict.fromkeys(("response_format", "user", "model", "quality", "output_format", "stream", "top_k"), "")
    replies = [post_form(server, path, fields, [("image", png(photo))]) for fields in (plain, plain | empty)]
    assert replies[0]["data"][0]["b64_json"] == replies[1]["data"][0]["b64_json"]


def post_form(server: Live, path: str, fields: dict[str, str], files: list[tuple[str, bytes]]) -> Any:
    parts = [
        *(
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ),
        *(
            f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'.encode()
            + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n"
            for name, data in files
        ),
    ]  # fmt: skip
    return post(server, path, b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x")


def post(server: Live, path: str, body: bytes, kind: str = "application/json") -> Any:
    asked = urllib.request.Request(f"{server.url}/v1/images/{path}", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_json_gives_the_same_bytes_as_the_form(server: Live, photo: Pixels) -> None:
    image, mask = png(photo), png(hole((360, 240), BOX))
    body = {"prompt": "x", "seed": 3, "images": [{"image_url": data_url(image)}], "mask": {"image_url": data_url(mask)}}
    as_json = post(server, "edits", json.dumps(body).encode())
    as_form = post_form(server, "edits", {"prompt": "x", "seed": "3"}, [("image", image), ("mask", mask)])
    assert as_json["data"][0]["b64_json"] == as_form["data"][0]["b64_json"]


def test_white_is_repainted_where_a_mask_has_no_holes(server: Live, photo: Pixels) -> None:
    white = np.zeros((240, 360), np.uint8)
    white[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    replies = [
        post_form(server, "edits", {"prompt": "x", "seed": "3"}, [("image", png(photo)), ("mask", png(mask))])
        for mask in (white, hole((360, 240), BOX))
    ]
    assert replies[0]["data"][0]["b64_json"] == replies[1]["data"][0]["b64_json"]


def test_strength_decides_without_a_mask(server: Live) -> None:
    base = server.engine.submit(GenerationRequest.of("a red apple", seed=1)).result()[0].pixels
    away = []
    for strength in ("0", "0.3", "1"):
        reply = post_form(server, "edits", {"prompt": "x", "seed": "3", "strength": strength}, [("image", png(base))])
        away.append(np.abs(pixels_of(reply["data"][0]["b64_json"]).astype(int) - base).mean())
    assert away[0] == 0 and 0 < away[1] < away[2]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_a_variation_takes_the_prompt_of_our_own_pictures(client: openai.OpenAI) -> None:
    ours = client.images.generate(prompt="a red apple", response_format="b64_json", extra_body={"seed": 2}).data
    assert ours is not None
    file = base64.b64decode(ours[0].b64_json or "")
    reply = client.images.create_variation(image=file, n=2, response_format="b64_json", extra_body={"seed": 4})
    assert reply.data is not None
    told = [read_metadata(base64.b64decode(each.b64_json or "")) for each in reply.data]
    assert [each.prompt for each in told] == ["a red apple"] * 2
    theirs = client.images.create_variation(image=png(pixels_of(ours[0].b64_json)), response_format="b64_json")
    assert theirs.data is not None
    assert read_metadata(base64.b64decode(theirs.data[0].b64_json or "")).prompt == ""


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_a_variation_by_url_and_as_the_bare_file(client: openai.OpenAI, server: Live, photo: Pixels) -> None:
    reply = client.images.create_variation(image=png(photo), response_format="url", size="256x256")
    assert reply.data is not None and reply.data[0].url
    asked = urllib.request.Request(reply.data[0].url)
    with urllib.request.urlopen(asked) as answer:
        assert Image.open(io.BytesIO(answer.read())).size == (256, 256)


def test_a_variation_that_keeps_tokens_is_a_branch(server: Live) -> None:
    body = {"prompt": "a red apple", "seed": 2, "response_format": "b64_json"}
    ours = base64.b64decode(post(server, "generations", json.dumps(body).encode())["data"][0]["b64_json"])
    fields = {"seed": "9", "keep_tokens": "128", "response_format": "b64_json"}
    branch = post_form(server, "variations", fields, [("image", ours)])["data"][0]["b64_json"]
    own, new = (read_metadata(file).token_grid() for file in (ours, base64.b64decode(branch)))
    assert np.array_equal(own[:128], new[:128]) and not np.array_equal(own, new)
    for words in ({"prompt": "a red apple"}, {}, {"prompt": ""}):  # none: the picture's own
        edit = post_form(server, "edits", fields | words, [("image", ours)])
        assert edit["data"][0]["b64_json"] == branch
    body = {"seed": 9, "keep_tokens": 128, "response_format": "b64_json", "images": [{"image_url": data_url(ours)}]}
    assert post(server, "edits", json.dumps(body).encode())["data"][0]["b64_json"] == branch


def test_an_empty_mask_is_a_field_left_empty(server: Live, photo: Pixels) -> None:
    mask = png(hole((360, 240), BOX))
    fields, image = {"prompt": "x", "seed": "3"}, ("image", png(photo))
    one, after_nothing = (
        post_form(server, "edits", fields, [image, *(("mask", each) for each in masks)])
        for masks in ([mask], [b"", mask])
    )
    assert one["data"][0]["b64_json"] == after_nothing["data"][0]["b64_json"]
    assert post_form(server, "variations", {}, [image, ("mask", b"")])["data"]


# -- bad input


SMALL = png(np.zeros((16, 16, 3), np.uint8))


@pytest.mark.parametrize(
    ("fields", "files", "param", "says"),
    [
        ({"prompt": "x"}, [], "image", "image is required"),
        ({"prompt": "x"}, [("image", b"")], "image", "image is empty"),
        ({"prompt": "x"}, [("image", b"hello")], "image", "no PNG, JPEG, WebP or GIF"),
        ({"prompt": "x"}, [("image", SMALL[:50])], "image", "image"),
        ({"prompt": "x"}, [("image", SMALL), ("image", SMALL)], "image", "2 pictures were sent"),
        ({"prompt": "x"}, [("image[]", SMALL)] * 17, "image", "17 pictures are too many"),
        ({"prompt": "x"}, [("image", SMALL), ("mask", b"x")], "mask", "mask is no PNG"),
        ({"prompt": "x"}, [("image", SMALL), ("mask", SMALL), ("mask", SMALL)], "mask", "2 files were sent"),
        ({"prompt": "x"}, [("image", SMALL), ("mask", png(np.zeros((16, 32), np.uint8)))], "mask", "the shape of"),
        ({"prompt": "x"}, [("image", SMALL), ("mask", png(np.zeros((16, 16), np.uint8)))], "mask", "frees nothing"),
        ({}, [("image", SMALL)], "prompt", "prompt is required"),
        ({"prompt": ""}, [("image", SMALL)], "prompt", "prompt is required"),
        ({"keep_tokens": "0"}, [], "prompt", "prompt is required"),
        ({"keep_tokens": "8"}, [("image", SMALL)], "prompt", "prompt is required"),  # not ours
        ({"prompt": " "}, [("image", SMALL)], "prompt", "must not be empty"),
        ({"prompt": "x", "mask": "data:image/png;base64,AA=="}, [("image", SMALL)], "mask", "must be a file"),
        ({"prompt": "x", "image": "AA=="}, [], "image", "must be a file"),
        ({"prompt": "x", "image[]": "AA=="}, [("image", SMALL)], "image[]", "must be a file"),
        ({"prompt": "x", "strength": "2"}, [("image", SMALL)], "strength", "less than or equal to 1"),
        ({"prompt": "x", "n": "many"}, [("image", SMALL)], "n", "integer"),
        ({"prompt": "x", "candidates": "17"}, [("image", SMALL)], "candidates", "16"),
    ],
)  # fmt: skip
def test_bad_input_is_named(server: Live, fields: Any, files: Any, param: str, says: str) -> None:
    reply = post_form(server, "edits", fields, files)
    assert reply["status"] == 400, reply
    assert reply["error"]["param"] == param
    assert says in reply["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({}, [("mask", SMALL)], "mask"),
        ({"mask": "data:image/png;base64,AA=="}, [], "mask"),
        ({"grow": "2"}, [], "grow"),
        ({"grow": "2", "keep_tokens": "4"}, [], "grow"),
    ],
)
def test_a_variation_takes_no_mask(server: Live, fields: Any, files: Any, param: str) -> None:
    """One that nobody sees would let the whole picture be painted over."""
    reply = post_form(server, "variations", fields, [("image", SMALL), *files])
    assert (reply["status"], reply["error"]["param"]) == (400, param)
    assert "/v1/images/edits" in reply["error"]["message"] or "must be a file" in reply["error"]["message"]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ({"image_url": "https://example.org/a.png"}, "this server fetches none"),
        ({"image_url": "http://127.0.0.1/latest/meta-data"}, "this server fetches none"),
        ({"image_url": "file:///etc/passwd"}, "this server fetches none"),
        ({"file_id": "file-1"}, "no files are kept here"),
        ({}, "exactly one of image_url and file_id"),
        ({"image_url": "data:image/png;base64,AA==", "file_id": "file-1"}, "exactly one"),
        ({"image_url": "data:image/png;base64,%%%"}, "must be base64"),
    ],
)
def test_only_the_picture_itself_is_taken(server: Live, image: Any, says: str) -> None:
    reply = post(server, "edits", json.dumps({"prompt": "x", "images": [image]}).encode())
    assert reply["status"] == 400 and says in reply["error"]["message"]


def test_a_checkpoint_without_encoder_says_so(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine, "info", replace(server.engine.info, features=("logprobs",)))
    reply = post_form(server, "edits", {"prompt": "x"}, [("image", SMALL)])
    assert (reply["status"], reply["error"]["code"]) == (501, "not_supported")
    assert "has no encoder" in reply["error"]["message"]
