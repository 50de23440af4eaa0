"""Jobs that draw over a given picture: edits, variations and branches, whose they may be, and what is kept of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from dalle_server.drawing.replay import ReplaySource, replay
from dalle_server.engine.engine import Engine
from dalle_server.pictures.metadata import read_metadata
from dalle_server.request import FREE
from dalle_server.web.jobs.current import EXTENSION
from tests.fake_runner import FakeRunner, FakeTokenizer, fake_config
from tests.web.jobs.client import Viewer, wait_for
from tests.web.waits import until

Json = dict[str, Any]
SIDE = 8  # of the grid; a token has 8x8 pixels


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(FakeRunner(fake_config(SIDE), num_slots=8), FakeTokenizer(), digest="d" * 64)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    app = make_app()
    yield app
    app.extensions[EXTENSION].close()


def submit(client: FlaskClient, status: int = 202, **fields: Any) -> Json:
    response = client.post("/v1/jobs", json=fields)
    assert response.status_code == status, response.json
    return dict(response.json)  # type: ignore[arg-type]


def drawn(client: FlaskClient, **fields: Any) -> Json:
    return wait_for(client, submit(client, **fields)["id"], "done")


def files(client: FlaskClient, job: Json) -> list[bytes]:
    return [client.get(image["url"]).data for image in job["images"]]


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def pixels_of(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


PHOTO = np.asarray(
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((120, 80))
)
MASK = np.zeros((80, 120), np.uint8)
MASK[20:50, 40:90] = 255


def test_a_job_repaints_what_the_mask_shows_as_an_edit_does(client: FlaskClient) -> None:
    fields: Json = {"prompt": "a pear", "seed": 3}
    job = drawn(client, **fields, num_images=2, image=url(png(PHOTO)), mask=url(png(MASK)))
    assert (job["over"]["strength"], job["over"]["candidates"], job["over"]["keep_tokens"]) == (1.0, 4, 0)
    body = {**fields, "n": 2, "images": [{"image_url": url(png(PHOTO))}], "mask": {"image_url": url(png(MASK))}}
    edits = client.post("/v1/images/edits", json=body).json["data"]
    for index, (file, edit) in enumerate(zip(files(client, job), edits, strict=True)):
        assert file == base64.b64decode(edit["b64_json"])
        assert np.array_equal(pixels_of(file)[MASK == 0], PHOTO[MASK == 0])
        told = read_metadata(file)
        assert told.over is not None and told.over.mask and told.image_index % 2**24 == index


def test_grown_tokens_change_and_pixels_outside_the_mask_do_not(client: FlaskClient) -> None:
    fields: Json = {"prompt": "a pear", "seed": 3, "candidates": 1}
    given = {"image": url(png(PHOTO)), "mask": url(png(MASK))}
    plain, grown = (files(client, drawn(client, **fields, **given, grow=grow))[0] for grow in (0, 2))
    assert read_metadata(plain).forced != read_metadata(grown).forced
    assert np.array_equal(pixels_of(grown)[MASK == 0], PHOTO[MASK == 0])
    body = {**fields, "grow": 2, "images": [{"image_url": given["image"]}], "mask": {"image_url": given["mask"]}}
    assert grown == base64.b64decode(client.post("/v1/images/edits", json=body).json["data"][0]["b64_json"])


def test_multipart_is_the_same(client: FlaskClient) -> None:
    as_json = drawn(client, prompt="a pear", seed=3, strength=0.7, image=url(png(PHOTO)), mask=url(png(MASK)))
    form = {"prompt": "a pear", "seed": "3", "strength": "0.7"}
    sent = {**form, "image": (io.BytesIO(png(PHOTO)), "a.png"), "mask": (io.BytesIO(png(MASK)), "m.png")}
    response = client.post("/v1/jobs", data=sent, content_type="multipart/form-data")
    assert response.status_code == 202, response.json
    job = wait_for(client, response.json["id"], "done")
    assert files(client, job) == files(client, as_json)
    for name in ("image", "mask"):
        as_text = {**form, "image": (io.BytesIO(png(PHOTO)), "a.png"), name: url(png(MASK))}
        refused = client.post("/v1/jobs", data=as_text, content_type="multipart/form-data")
        assert refused.status_code == 400 and refused.json["error"]["param"] == name
        assert "must be a file" in refused.json["error"]["message"]


def test_without_words_it_is_a_variation_with_the_pictures_own(client: FlaskClient, engine: Engine) -> None:
    first = drawn(client, prompt="a red apple", seed=7)
    job = drawn(client, image={"job": first["id"], "index": 0}, seed=9)
    assert (job["prompt"], job["over"]["strength"], job["over"]["candidates"]) == ("a red apple", 0.5, 1)
    theirs = drawn(client, image=url(png(PHOTO)), seed=9)
    assert theirs["prompt"] == ""


def test_a_branch_goes_on_from_a_gallery_picture(client: FlaskClient, engine: Engine) -> None:
    first = drawn(client, prompt="a red apple", seed=7, top_k=5, negative_prompt="leaves")
    image = {"job": first["id"], "index": 0}
    whole = read_metadata(files(client, first)[0]).token_grid()
    branch = drawn(client, image=image, keep_tokens=24, seed=8, prompt="a pear")
    tokens = read_metadata(files(client, branch)[0]).token_grid()
    assert np.array_equal(tokens[:24], whole[:24]) and not np.array_equal(tokens[24:], whole[24:])
    assert (branch["top_k"], branch["negative_prompt"], branch["prompt"]) == (5, "leaves", "a pear")
    again = drawn(client, image=image, keep_tokens=24, seed=7)  # nothing new: the same picture
    assert np.array_equal(pixels_of(files(client, again)[0]), pixels_of(files(client, first)[0]))


def test_a_branch_of_our_own_picture_needs_no_encoder(client: FlaskClient, engine: Engine) -> None:
    first = drawn(client, prompt="a red apple", seed=7)
    runner = engine._loop.runner
    assert isinstance(runner, FakeRunner)

    def refuse(pixels: Any) -> None:
        raise AssertionError("the picture was read")

    runner.on_tokenize = refuse
    drawn(client, image={"job": first["id"]}, keep_tokens=8, seed=1)
    drawn(client, image=url(files(client, first)[0]), keep_tokens=8, seed=1)


@pytest.mark.parametrize("name", ["image", "mask"])
def test_of_several_files_none_is_dropped_without_a_word(client: FlaskClient, name: str) -> None:
    sent = {"prompt": "x", "image": [(io.BytesIO(png(PHOTO)), "a.png")], "mask": [(io.BytesIO(png(MASK)), "m.png")]}
    sent[name] = [(io.BytesIO(b""), ""), *sent[name], (io.BytesIO(png(PHOTO)), "b.png")]
    refused = client.post("/v1/jobs", data=sent, content_type="multipart/form-data")
    assert (refused.status_code, refused.json["error"]["param"]) == (400, name)
    assert f"{name}: 2 files were sent; send one" in refused.json["error"]["message"]


def test_weights_without_an_encoder_refuse_a_strangers_picture(
    client: FlaskClient, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = drawn(client, prompt="a red apple", seed=7)
    monkeypatch.setattr(engine, "info", replace(engine.info, features=("logprobs",)))
    error = submit(client, 501, prompt="x", image=url(png(PHOTO)), mask=url(png(MASK)))["error"]
    assert (error["code"], error["param"]) == ("not_supported", "image") and "has no encoder" in error["message"]
    assert len(list((tmp_path / "data" / "jobs").iterdir())) == 1
    drawn(client, image={"job": first["id"]}, keep_tokens=8, seed=1)


def test_what_a_picture_tells_makes_it_again(client: FlaskClient, engine: Engine) -> None:
    job = drawn(client, prompt="a pear", seed=3, image=url(png(PHOTO)), mask=url(png(MASK)))
    told = read_metadata(files(client, job)[0])
    for source in ReplaySource:
        assert replay(told, engine, source).same_pixels
    assert FREE in told.request().forced_tokens


def test_the_given_files_are_shown_and_go_with_the_job(client: FlaskClient, tmp_path: Path) -> None:
    job = drawn(client, prompt="a pear", seed=3, image=url(png(PHOTO)), mask=url(png(MASK)))
    for name, data in (("image", png(PHOTO)), ("mask", png(MASK))):
        reply = client.get(job["over"][f"{name}_url"])
        assert (reply.data, reply.mimetype) == (data, "image/png")
    assert client.get(f"/v1/jobs/{job['id']}/given/else").status_code == 404
    plain = drawn(client, prompt="a pear")
    assert plain["over"] is None and client.get(f"/v1/jobs/{plain['id']}/given/image").status_code == 404
    for each in (job, plain):
        client.delete(f"/v1/jobs/{each['id']}")
    assert not list((tmp_path / "data" / "jobs").iterdir())


def test_previews_show_the_whole_picture(client: FlaskClient, engine: Engine) -> None:
    runner = engine._loop.runner
    assert isinstance(runner, FakeRunner)
    runner.step_s = 0.02
    job = submit(client, prompt="a pear", seed=3, num_images=2, image=url(png(PHOTO)), mask=url(png(MASK)))
    viewer = Viewer(client, f"/v1/jobs/{job['id']}/events")
    viewer.read_until("preview")
    runner.step_s = 0.0
    shown = viewer.seen[-1][2]
    assert shown["index"] in (0, 1)
    pixels = pixels_of(base64.b64decode(shown["image"].partition(",")[2]))
    assert pixels.shape == PHOTO.shape
    assert np.abs(pixels[60:].astype(int) - PHOTO[60:]).mean() < 8  # a JPEG of what is kept
    names = viewer.read_until("done")
    progress = [data for _, name, data in viewer.seen if name == "progress"]
    assert names.count("image") == 2 and progress[-1]["num_tokens"] == 2 * SIDE**2


def test_another_keys_picture_is_not_found(make_app: Callable[..., Flask]) -> None:
    app = make_app(api_keys=("one-secret", "two-secret"))
    one, two = app.test_client(), app.test_client()
    one.environ_base["HTTP_AUTHORIZATION"] = "Bearer one-secret"
    two.environ_base["HTTP_AUTHORIZATION"] = "Bearer two-secret"
    mine = drawn(one, prompt="a red apple", seed=7)
    error = submit(two, 404, image={"job": mine["id"], "index": 0}, keep_tokens=8)["error"]
    unknown = submit(two, 404, image={"job": "job-0", "index": 0}, keep_tokens=8)["error"]
    assert error["param"] == unknown["param"] == "image.job"
    assert error["message"] == unknown["message"].replace("job-0", mine["id"])
    over = drawn(one, image={"job": mine["id"], "index": 0}, keep_tokens=8)
    assert two.get(over["over"]["image_url"]).status_code == 404
    assert two.get("/v1/jobs").json["data"] == []
    app.extensions[EXTENSION].close()


SMALL = url(png(np.zeros((16, 16, 3), np.uint8)))


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"mask": SMALL}, 400, "mask", "send one as image"),
        ({"strength": 0.5}, 400, "strength", "send one as image"),
        ({"keep_tokens": 3}, 400, "keep_tokens", "send one as image"),
        ({"grow": 1}, 400, "grow", "send one as image"),
        ({"image": SMALL, "grow": 17}, 400, "grow", "16"),
        ({"image": SMALL, "keep_tokens": 64}, 400, "keep_tokens", "between 0 and 63"),
        ({"image": SMALL, "strength": 1.5}, 400, "strength", "less than or equal to 1"),
        ({"image": SMALL, "candidates": 17}, 400, "candidates", "16"),
        ({"image": "https://example.org/a.png"}, 400, "image", "this server fetches none"),
        ({"image": "%%%"}, 400, "image", "must be base64"),
        ({"image": url(b"hello")}, 400, "image", "no PNG, JPEG, WebP or GIF"),
        ({"image": SMALL, "mask": url(png(np.zeros((16, 16), np.uint8)))}, 400, "mask", "frees nothing"),
        ({"image": SMALL, "candidates": 16, "num_images": 5}, 400, "candidates", "at most 64"),
        ({"image": {"job": "job-0"}}, 404, "image.job", "there is no job"),
        ({"image": {"index": 0}}, 400, "image.job", "is required"),
        ({"image": 5}, 400, "image", "valid string, not 5"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_leaves_nothing(
    client: FlaskClient, tmp_path: Path, fields: Json, status: int, param: str, says: str
) -> None:
    error = submit(client, status, prompt="x", **fields)["error"]
    assert error["param"] == param and says in error["message"]
    assert client.get("/v1/jobs").json["data"] == []
    assert not list((tmp_path / "data" / "jobs").iterdir())


def test_a_picture_that_is_gone_is_not_found(client: FlaskClient, tmp_path: Path) -> None:
    job = drawn(client, prompt="x", seed=1)
    assert submit(client, 404, image={"job": job["id"], "index": 1})["error"]["param"] == "image.index"
    (tmp_path / "data" / "jobs" / job["id"] / "0.png").unlink()
    assert submit(client, 404, image={"job": job["id"], "index": 0})["error"]["param"] == "image.index"


def test_a_disk_that_takes_no_file_refuses_the_job(
    app: Flask, client: FlaskClient, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = app.extensions[EXTENSION].store
    write = store.files.write

    def full(name: str, data: bytes) -> None:
        if name.endswith("mask.given"):
            raise OSError(28, "No space left on device")
        write(name, data)

    monkeypatch.setattr(store.files, "write", full)
    error = submit(client, 507, prompt="x", image=SMALL, mask=url(png(np.full((16, 16), 255, np.uint8))))["error"]
    assert error["code"] == "storage_error"
    assert not list((tmp_path / "data" / "jobs").iterdir())
    until(lambda: engine.stats().live_requests == 0)


def test_json_of_a_job_is_what_the_document_says(client: FlaskClient) -> None:
    document = client.get("/openapi.json").json
    assert document is not None
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert {"image", "mask", "strength", "candidates", "keep_tokens"} <= set(
        document["components"]["schemas"]["JobBody"]["properties"]
    )
    assert json.dumps(document["paths"]["/v1/images/edits"]["post"]["requestBody"]).count("schema") >= 2


def test_a_given_file_that_has_gone_is_no_full_disk(client: FlaskClient, tmp_path: Path) -> None:
    job = drawn(client, prompt="a pear", seed=3, image=url(png(PHOTO)), mask=url(png(MASK)))
    (tmp_path / "data" / "jobs" / job["id"] / "image.given").unlink()
    reply = client.get(job["over"]["image_url"])
    assert (reply.status_code, reply.json["error"]["param"]) == (404, "name")
    assert client.get(job["over"]["mask_url"]).data == png(MASK), "the other one is not wanted for it"
