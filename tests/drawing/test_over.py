"""Edits, variations, branches and other shapes of a real model: one picture, whichever way it is asked for."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from dalle_server import DalleModel, cli
from dalle_server.config import Settings
from dalle_server.errors import InvalidRequest, PayloadTooLarge
from dalle_server.pictures.canvas import read_picture
from dalle_server.pictures.metadata import read_metadata
from dalle_server.web.app import create_app
from dalle_server.web.jobs.current import EXTENSION
from dalle_server.web.service import Service
from tests.families.tiny import TINY

Json = dict[str, Any]
Flags = tuple[str, ...]
PNG = ("--img_format", "png")


@pytest.fixture(scope="module", params=["nano", "janus"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Which model, as everybody here asks for it."""
    weights = {"model_version": "nano"} if request.param == "nano" else {"model_dir": str(TINY["janus"])}
    return {**weights, "cache_dir": str(tmp_path_factory.mktemp("cache")), "num_threads": 1}


@pytest.fixture(scope="module")
def flags(settings: Json) -> Flags:
    return tuple(word for name, value in settings.items() for word in (f"--{name}", str(value)))


@pytest.fixture(scope="module")
def model(settings: Json) -> Iterator[DalleModel]:
    version = settings.get("model_version", "mini")
    with DalleModel(version, **{k: v for k, v in settings.items() if k != "model_version"}) as model:
        yield model


@pytest.fixture(scope="module")
def app(model: DalleModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    data_dir = tmp_path_factory.mktemp("data")
    settings = Settings(data_dir=data_dir, output_dir=data_dir / "out")
    service = Service(settings, load=lambda: model.engine)
    service.start_loading()
    assert service.wait_until_loaded(30)
    app = create_app(settings, service)
    yield app
    app.extensions[EXTENSION].close()


@pytest.fixture(scope="module")
def files(flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A photo that is no square, a mask of it, and a picture of the model's own."""
    directory = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((120, 80)).save(directory / "photo.png")
    mask = Image.new("L", (120, 80))
    mask.paste(255, (40, 20, 90, 50))
    mask.save(directory / "mask.png")
    assert cli.main(["generate", "a red apple", "--seed", "7", *flags, *PNG, "-o", str(directory)]) == 0
    return {name: directory / f"{name}.png" for name in ("photo", "mask")} | {"ours": directory / "a red apple-7-0.png"}


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def by_job(client: FlaskClient, **fields: Any) -> bytes:
    response = client.post("/v1/jobs", json=fields)
    assert response.status_code == 202, response.json
    job: Any = response.json
    deadline = time.monotonic() + 30
    while job["status"] != "done" and time.monotonic() < deadline:
        time.sleep(0.01)
        with client.get(f"/v1/jobs/{job['id']}") as reply:  # an answer that stays open counts as in flight
            assert reply.status_code == 200, reply.json
            job = reply.json
    return client.get(job["images"][0]["url"]).data


def by_http(client: FlaskClient, path: str, files: Json, **fields: Any) -> bytes:
    sent = {name: (io.BytesIO(data.read_bytes()), "a.png") for name, data in files.items()}
    form = {name: str(value) for name, value in fields.items()}
    body = {**form, **sent, "response_format": "b64_json"}
    response = client.post(f"/v1/images/{path}", data=body, content_type="multipart/form-data")
    assert response.status_code == 200, response.json
    return base64.b64decode(response.json["data"][0]["b64_json"])


@pytest.fixture
def by_command(flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., bytes]:
    def call(*words: object) -> bytes:
        assert cli.main([*(str(word) for word in words), *flags, *PNG, "-o", str(tmp_path)]) == 0
        return Path(capsys.readouterr().out.strip()).read_bytes()

    return call


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_an_edit_has_the_same_bytes_everywhere(
    model: DalleModel, app: Flask, files: dict[str, Path], by_command: Callable[..., bytes]
) -> None:
    client, photo, mask = app.test_client(), files["photo"], files["mask"]
    edited = by_command("edit", photo, "--mask", mask, "--prompt", "a red apple", "--seed", 3)
    assert edited == by_http(client, "edits", {"image": photo, "mask": mask}, prompt="a red apple", seed=3)
    assert edited == by_job(client, image=data_url(photo), mask=data_url(mask), prompt="a red apple", seed=3)
    (image,) = model.edit_image(photo, "a red apple", seed=3, mask=mask)
    assert np.array_equal(np.asarray(image), pixels(edited))
    for given, holes in ((Image.open(photo), Image.open(mask)), (str(photo), mask.read_bytes())):
        assert model.edit_image(given, "a red apple", seed=3, mask=holes)[0].tobytes() == image.tobytes()
    kept = np.asarray(Image.open(mask)) == 0
    assert np.array_equal(pixels(edited)[kept], np.asarray(Image.open(photo))[kept])
    told = read_metadata(edited)
    assert told.over is not None and (told.over.mask, told.over.candidates) == (True, 4)


def test_a_variation_has_the_same_bytes_everywhere(
    model: DalleModel, app: Flask, files: dict[str, Path], by_command: Callable[..., bytes]
) -> None:
    client, ours = app.test_client(), files["ours"]
    varied = by_command("vary", ours, "--seed", 3)
    assert varied == by_http(client, "variations", {"image": ours}, seed=3)
    assert varied == by_job(client, image=data_url(ours), seed=3)
    assert np.array_equal(np.asarray(model.vary_image(ours, seed=3)[0]), pixels(varied))
    assert read_metadata(varied).prompt == "a red apple"


def test_a_branch_has_the_same_bytes_everywhere(
    model: DalleModel, app: Flask, files: dict[str, Path], by_command: Callable[..., bytes]
) -> None:
    client, ours = app.test_client(), files["ours"]
    side = model.engine.config.picture.grid_width
    branch = by_command("branch", ours, "--keep_rows", 4, "--prompt", "a green pear", "--seed", 9)
    fields: Json = {"prompt": "a green pear", "seed": 9, "keep_tokens": 4 * side}
    assert branch == by_http(client, "edits", {"image": ours}, **fields)
    assert branch == by_job(client, image=data_url(ours), **fields)
    assert np.array_equal(np.asarray(model.branch_image(ours, 4, seed=9, text="a green pear")[0]), pixels(branch))
    first, tokens = read_metadata(ours).token_grid(), read_metadata(branch).token_grid()
    assert np.array_equal(first[: 4 * side], tokens[: 4 * side]) and not np.array_equal(first, tokens)
    again = by_command("branch", ours, "--keep_rows", 4, "--seed", 7)
    assert np.array_equal(pixels(again), pixels(ours.read_bytes()))


@pytest.mark.parametrize(
    "asked",
    [{"size": "300x200"}, {"size": "100x290"}, {"size": "300x200", "fit": "crop"}, {"size": "96x64", "seamless": True}],
    ids=lambda asked: "-".join(map(str, asked.values())),
)
def test_a_shape_has_the_same_bytes_everywhere(
    model: DalleModel, app: Flask, by_command: Callable[..., bytes], tmp_path: Path, flags: Flags, asked: Json
) -> None:
    client = app.test_client()
    words = [word for name, value in asked.items() for word in (f"--{name}", *([] if value is True else [value]))]
    made = by_command("generate", "a red apple", "--seed", 7, *words)
    body = {"prompt": "a red apple", "seed": 7, "response_format": "b64_json", **asked}
    reply = client.post("/v1/images/generations", json=body).json
    assert reply is not None and made == base64.b64decode(reply["data"][0]["b64_json"])
    assert made == by_job(client, prompt="a red apple", seed=7, **asked)
    (image,) = model.generate_images("a red apple", 1, 7, **asked)
    assert np.array_equal(np.asarray(image), pixels(made))
    assert "{}x{}".format(*image.size) == asked["size"]
    told, (width, height) = read_metadata(made), image.size
    is_painted = len(asked) == 1
    assert told.seamless == asked.get("seamless", False) and bool(told.grid_width) == is_painted
    if is_painted:
        side = model.engine.config.picture.grid_width
        rows, columns = (round(side * max(1, one / other)) for one, other in ((height, width), (width, height)))
        assert (told.num_tokens, told.grid_width) == (rows * columns, columns)
    file = tmp_path / "shape.png"
    file.write_bytes(made)
    assert cli.main(["replay", str(file), *flags]) == 0


def test_a_score_is_what_the_model_said_while_it_drew(app: Flask, files: dict[str, Path]) -> None:
    client = app.test_client()

    def post(path: str, **body: Any) -> Any:
        reply = client.post(path, json=body)
        assert reply.status_code == 200, reply.json
        return reply.json

    drawn = post("/v1/images/generations", prompt="a red apple", seed=7, logprobs=True, response_format="b64_json")
    (picture,) = drawn["data"]
    told = post("/v1/images/score", prompt="a red apple", image=data_url(files["ours"]))
    assert np.allclose(told["logprobs"], picture["logprobs"], atol=1e-3)
    assert told["logprobs"] != post("/v1/images/score", prompt="x", image=data_url(files["ours"]))["logprobs"]


def test_a_branch_of_a_seamless_picture_is_seamless_everywhere(
    model: DalleModel, app: Flask, by_command: Callable[..., bytes], tmp_path: Path
) -> None:
    ours, client = tmp_path / "ours.png", app.test_client()
    ours.write_bytes(by_command("generate", "a red apple", "--seamless", "--seed", 7))
    branch = by_command("branch", ours, "--keep_rows", 4, "--seed", 7)  # nothing new: the same picture
    assert read_metadata(branch).seamless and np.array_equal(pixels(branch), pixels(ours.read_bytes()))
    fields: Json = {"prompt": "a red apple", "seed": 7, "keep_tokens": 4 * model.engine.config.picture.grid_width}
    assert branch == by_http(client, "edits", {"image": ours}, **fields)
    assert branch == by_job(client, image=data_url(ours), **fields)
    assert np.array_equal(np.asarray(model.branch_image(ours, 4, seed=7)[0]), pixels(branch))
    varied = by_command("vary", ours, "--seed", 3, "--seamless")
    assert varied == by_job(client, image=data_url(ours), seed=3, seamless=True)
    assert np.array_equal(np.asarray(model.vary_image(ours, seed=3, seamless=True)[0]), pixels(varied))


def test_an_opened_picture_is_read_as_its_file_is(tmp_path: Path) -> None:
    """Upright, of any mode, with its holes, and however large its file would be as PNG."""
    noise = np.random.default_rng(1).integers(0, 256, (40, 60, 4), np.uint8)
    lying, turned = Image.fromarray(noise[:, :, :3]), Image.Exif()
    turned[0x0112] = 6
    lying.save(tmp_path / "phone.jpg", exif=turned)
    lying.convert("CMYK").save(tmp_path / "print.jpg")
    Image.fromarray(noise).save(tmp_path / "holes.png")
    Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    lying.quantize(8).save(tmp_path / "few.gif")
    for name in ("phone.jpg", "print.jpg", "holes.png", "deep.png", "few.gif"):
        with Image.open(tmp_path / name) as image:
            opened, read = read_picture(image), read_picture((tmp_path / name).read_bytes())
        assert np.array_equal(opened.pixels, read.pixels), name
        assert (opened.alpha is None) == (read.alpha is None) == (name != "holes.png")
    assert read_picture(Image.open(tmp_path / "phone.jpg")).size_px == (40, 60)
    large = Image.fromarray(np.random.default_rng(2).integers(0, 256, (2400, 2600, 3), np.uint8))  # 18 MB as PNG
    assert read_picture(large).size_px == (2600, 2400)
    with pytest.raises(PayloadTooLarge, match="10000x6000"):
        read_picture(Image.new("1", (10_000, 6_000)))
    cut = (tmp_path / "phone.jpg").read_bytes()[:1500]
    with pytest.raises(InvalidRequest, match="image cannot be read as a picture"):
        read_picture(Image.open(io.BytesIO(cut)))


def test_strength_0_gives_our_own_picture_back(model: DalleModel, files: dict[str, Path]) -> None:
    (image,) = model.vary_image(files["ours"], seed=1, strength=0.0)
    assert np.array_equal(np.asarray(image), pixels(files["ours"].read_bytes()))


def test_info_and_replay_know_what_was_drawn_over(
    flags: Flags,
    files: dict[str, Path],
    by_command: Callable[..., bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edited = tmp_path / "edited.png"
    edited.write_bytes(by_command("edit", files["photo"], "--mask", files["mask"], "--prompt", "x", "--seed", 3))
    assert cli.main(["info", str(edited)]) == 0
    assert "a picture of 120x80, at (25, 0) a square of 80, as a mask shows: strength 1" in capsys.readouterr().out
    for source in ("seed", "tokens"):
        assert cli.main(["replay", str(edited), "--source", source, *flags]) == 0
        assert "the same picture, bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("vary", "gone.png"), "cannot read gone.png: No such file or directory"),
        (("vary", "{mask}", "--strength", "2"), "strength must lie between 0.0 and 1.0, not 2.0"),
        (("edit", "{photo}", "--prompt", " "), "prompt must not be empty"),
        (("edit", "{photo}", "--prompt", "x", "--mask", "{ours}"), "must have the shape of the picture"),
        (("edit", "{photo}", "--prompt", "x", "--candidates", "17"), "candidates must lie between 1 and 16"),
        (("vary", "{photo}", "--candidates", "0"), "candidates must lie between 1 and 16, not 0"),
        (("branch", "{ours}", "--keep_rows", "{rows}"), "keep_rows must lie between 1 and {last}, not {rows}"),
        (("branch", "{ours}", "--keep_rows", "0"), "keep_rows must lie between 1 and {last}, not 0"),
        (("branch", "{ours}"), "the following arguments are required: --keep_rows"),
        (
            ("generate", "x", "--size", "5"),
            "size must be auto or WIDTHxHEIGHT with sides of 16 to 3840 pixels, not '5'",
        ),
        (("generate", "x", "--size", "400x100"), "size must be no longer than 3 times its other side, not '400x100'"),
        (("generate", "x", "--fit", "zoom"), "fit must be one of paint, crop, stretch, not 'zoom'"),
        (("generate", "x", "--fit", "paint", "--seamless"), "seamless is for the model's own shape"),
    ],
)
def test_mistakes_of_a_command_are_one_line(
    model: DalleModel,
    flags: Flags,
    files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    says: str,
) -> None:
    rows = model.engine.config.picture.grid_height
    try:
        code = cli.main([*(word.format(**files, rows=rows) for word in words), *flags])
    except SystemExit as end:
        code = int(end.code or 0)
    error = capsys.readouterr().err.strip()
    says = says.format(rows=rows, last=rows - 1)
    assert code == 2 and says in error and "\n" not in error


def test_mistakes_of_a_program_name_the_field(model: DalleModel, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="prompt must not be empty"):
        model.edit_image(files["photo"], "")
    with pytest.raises(InvalidRequest, match="num_images must lie between 1"):
        model.vary_image(files["photo"], 0)
    with pytest.raises(InvalidRequest, match="size must be auto or WIDTHxHEIGHT"):
        model.generate_images("x", 1, size="64")
    with pytest.raises(TypeError, match="hotness"):
        model.vary_image(files["photo"], hotness=1)
    big = tmp_path / "big.png"
    with big.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(PayloadTooLarge, match=r"more than 16,777,216 bytes"):
        model.vary_image(big)
