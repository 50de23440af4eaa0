"""What depends on the family, through the server: the same tests for a tiny DalleBart and a tiny Janus, both real."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from dalle_server import DalleModel, cli
from dalle_server.config import Settings
from dalle_server.drawing.replay import ReplaySource, replay
from dalle_server.pictures.metadata import read_metadata
from dalle_server.web.app import create_app
from dalle_server.web.service import Service
from tests.families.tiny import TINY
from tests.runners.cpu.cpu_runners import needs_compiled

pytestmark = needs_compiled


@dataclass(frozen=True)
class Expected:
    side: int  # of the grid
    image_px: int
    guidance: float
    reads_pictures: bool


EXPECTED = {
    "dalle-bart": Expected(side=4, image_px=64, guidance=10.0, reads_pictures=True),
    "janus": Expected(side=6, image_px=96, guidance=5.0, reads_pictures=True),
}
ASKED = {"prompt": "a red apple", "seed": 7, "response_format": "b64_json", "output_format": "png"}


@pytest.fixture(scope="module", params=TINY)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DalleModel]:
    cache_dir = tmp_path_factory.mktemp("cache")
    with DalleModel("mini", model_dir=TINY[family], cache_dir=cache_dir, num_threads=1, num_slots=3) as model:
        yield model


@pytest.fixture(scope="module")
def client(model: DalleModel, tmp_path_factory: pytest.TempPathFactory) -> FlaskClient:
    service = Service(Settings(data_dir=tmp_path_factory.mktemp("data")), load=lambda: model.engine)
    service.start_loading()
    assert service.wait_until_loaded(30)
    return create_app(service.settings, service).test_client()


@pytest.fixture(scope="module")
def expected(family: str) -> Expected:
    return EXPECTED[family]


def drawn(client: FlaskClient, **fields: Any) -> list[dict[str, Any]]:
    reply = client.post("/v1/images/generations", json={**ASKED, **fields})
    assert reply.status_code == 200, reply.json
    found: list[dict[str, Any]] = reply.json["data"]
    return found


def file_of(data: dict[str, Any]) -> bytes:
    return base64.b64decode(data["b64_json"])


def test_what_the_server_tells_of_itself(client: FlaskClient, family: str, expected: Expected) -> None:
    info: Any = client.get("/v1/info").json["model"]
    assert (info["image_tokens"], info["image_px"]) == (expected.side**2, expected.image_px)
    assert info["sampling"]["condition_scale"] == expected.guidance
    (item,) = (item for item in client.get("/v1/models").json["data"] if item["default"])
    assert (item["family"], item["image_px"], item["state"]) == (family, expected.image_px, "loaded")
    assert ("tokenize" in item["features"]) == expected.reads_pictures


def test_a_picture_tells_how_it_was_made_and_is_made_again(
    client: FlaskClient, model: DalleModel, expected: Expected
) -> None:
    (data,) = drawn(client)
    metadata = read_metadata(file_of(data))
    tokens = metadata.token_grid()
    assert tokens.shape == (expected.side**2,) and metadata.condition_scale == expected.guidance
    for source in ReplaySource:
        assert replay(metadata, model.engine, source).verdict == f"from its {source}: the same picture, bit for bit"


def test_the_command_makes_a_file_again(
    client: FlaskClient, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ours.png"
    path.write_bytes(file_of(drawn(client)[0]))
    flags = ["--model_dir", str(TINY[family]), "--cache_dir", str(tmp_path / "cache"), "--num_threads", "1"]
    assert cli.main(["replay", str(path), *flags]) == 0
    assert "the same picture, bit for bit" in capsys.readouterr().out


def test_previews_are_rows_of_the_picture(client: FlaskClient, expected: Expected) -> None:
    text = client.post("/v1/images/generations", json={**ASKED, "stream": True, "partial_images": 2}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [event["type"].rsplit(".", 1)[1] for event in events][-1] == "completed"
    assert file_of(events[-1]) == file_of(drawn(client)[0])
    last = _pixels(events[-1])
    assert last.shape == (expected.image_px, expected.image_px, 3)
    for event in events[:-1]:
        assert event["type"].endswith("partial_image") and _pixels(event).shape == last.shape


def _pixels(data: dict[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(file_of(data))))


def test_a_score_is_a_map_of_the_grid(client: FlaskClient, expected: Expected) -> None:
    (data,) = drawn(client, logprobs=True)
    asked = {"image": data["b64_json"], "prompt": ASKED["prompt"]}
    score: Any = client.post("/v1/images/score", json=asked).json
    assert (score["grid_width"], score["grid_height"]) == (expected.side, expected.side)
    np.testing.assert_allclose(score["logprobs"], data["logprobs"], atol=1e-3)


def test_of_several_pictures_each_has_its_own_place(client: FlaskClient) -> None:
    several = [file_of(data) for data in drawn(client, n=3)]
    assert len(set(several)) == 3 and several[0] == file_of(drawn(client)[0])


def test_automatic1111_has_the_models_own_size(client: FlaskClient, expected: Expected) -> None:
    reply: Any = client.post("/sdapi/v1/txt2img", json={"prompt": "a red apple", "seed": 7, "batch_size": 2}).json
    told = json.loads(reply["info"])
    assert (told["width"], told["height"]) == (expected.image_px, expected.image_px) and len(reply["images"]) == 2
