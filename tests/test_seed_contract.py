"""The same request gives the same bytes: over HTTP in any order and company, from the command line, and in Python."""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from dalle_server import DalleModel, ModelSize, cli
from dalle_server.config import Settings
from dalle_server.request import GenerationRequest
from dalle_server.web.app import create_app
from dalle_server.web.service import Service
from tests.families.tiny import TINY
from tests.web.live import listening

NUM_REQUESTS, NUM_CLIENTS = {"dalle-bart": 200, "janus": 50}, 8

Body = dict[str, object]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=TINY)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, cache_dir: Path) -> Iterator[DalleModel]:
    with DalleModel(ModelSize.MINI, model_dir=TINY[family], cache_dir=cache_dir, num_threads=1, num_slots=6) as model:
        yield model


@pytest.fixture(scope="module")
def url(model: DalleModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    service = Service(Settings(data_dir=tmp_path_factory.mktemp("data")), load=lambda: model.engine)
    service.start_loading()
    assert service.wait_until_loaded(30)
    with listening(create_app(service.settings, service)) as url:
        yield url


def random_body(dice: random.Random) -> Body:
    return {
        "prompt": dice.choice(["a red apple", "two dogs, one of them blue", "x", "the sea at night " * 20]),
        "n": dice.choice([1, 1, 1, 3]),
        "seed": dice.randrange(2**40),
        "top_k": dice.choice([0, 1, 8, 50]),
        "top_p": dice.choice([1.0, 0.9]),
        "temperature": dice.choice([0.7, 1.0, 2.0]),
        "condition_scale": dice.choice([1.0, 4.0, 10.0]),
        "response_format": "b64_json",
        "output_format": "png",
    }


def pictures(url: str, body: Body) -> list[bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("POST", "/v1/images/generations", json.dumps(body))
        reply = connection.getresponse()
        content = json.loads(reply.read())
        assert reply.status == 200, content
        return [base64.b64decode(picture["b64_json"]) for picture in content["data"]]
    finally:
        connection.close()


def pixels(file: bytes | str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file) if isinstance(file, bytes) else file))


@pytest.mark.timeout(900)  # 800 requests, on a machine that may be busy
def test_200_requests_in_three_orders_are_the_bytes_of_each_alone(family: str, model: DalleModel, url: str) -> None:
    dice, num_requests = random.Random(20210721), NUM_REQUESTS[family]
    bodies = [random_body(dice) for _ in range(num_requests)]
    alone = [pictures(url, body) for body in bodies]
    assert len({pixels(file).tobytes() for answer in alone for file in answer}) > num_requests / 2

    def in_company(index: int) -> list[bytes]:
        if index % 5 == 0:  # somebody who comes and leaves
            model.submit(GenerationRequest.of("gone", 2, seed=index)).cancel()
        return pictures(url, bodies[index])

    for order in (range(num_requests), reversed(range(num_requests)), dice.sample(range(num_requests), num_requests)):
        numbers = list(order)
        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            answers = dict(zip(numbers, clients.map(in_company, numbers), strict=True))
        different = [number for number in numbers if answers[number] != alone[number]]
        assert not different, f"{len(different)} requests differ from the same alone: {different[:10]}"


def test_http_command_line_and_python_agree(
    family: str, model: DalleModel, url: str, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_python = [np.asarray(image) for image in model.generate_images("a red apple", 2, seed=7)]
    flags = ("--model_dir", TINY[family], "--cache_dir", cache_dir, "--num_threads", 1, "--img_format", "png")
    words = ("generate", "a red apple", "-n", 2, "--seed", 7, "-o", tmp_path, *flags)
    assert cli.main([str(word) for word in words]) == 0
    from_command = [pixels(path) for path in capsys.readouterr().out.splitlines()]
    body: Body = {"prompt": "a red apple", "n": 2, "seed": 7, "response_format": "b64_json", "output_format": "png"}
    over_http = [pixels(file) for file in pictures(url, body)]
    np.testing.assert_array_equal(from_command, in_python)
    np.testing.assert_array_equal(over_http, in_python)
