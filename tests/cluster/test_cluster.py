"""Fronts and replicas on a real Ray cluster of this machine."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dalle_server.dalle_model import DalleModel
from dalle_server.pictures.metadata import read_metadata
from tests.cluster.ray_here import ray_cluster
from tests.web.server_process import ServerProcess

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_cluster() as address:
        yield address


def front(directory: Path, address: str, *flags: str) -> ServerProcess:
    nano = ("--model_version", "nano", "--replica_resources", "CPU=1")
    return ServerProcess(directory, "--cluster", address, *nano, *flags, real=True)


def test_the_command_draws_on_replicas_what_an_engine_of_its_own_draws(address: str, tmp_path: Path) -> None:
    with front(tmp_path, address, "--replicas", "2") as server:
        server.ready()
        body = {"prompt": "a red apple", "n": 3, "seed": 5, "response_format": "b64_json", "output_format": "png"}
        status, _, reply = server.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
        assert status == 200, reply
        files = [base64.b64decode(each["b64_json"]) for each in json.loads(reply)["data"]]
        info: dict[str, Any] = server.get("/v1/info")[1]
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0, server.errors
    (tmp_path / "first.png").write_bytes(files[0])
    with DalleModel("nano", num_threads=1) as local:
        expected = local.generate_images("a red apple", 3, seed=5)
        digest = local.engine.digest
    assert [pixels_of(file) for file in files] == [image.tobytes() for image in expected]
    assert read_metadata(tmp_path / "first.png").weights_digest == digest == info["model"]["weights_digest"]
    replicas = info["models"][0]["replicas"]
    assert len({each["replica"] for each in replicas}) == 2
    assert {(each["weights"], each["runner"], each["state"]) for each in replicas} == {(digest, "compiled", "ready")}


def pixels_of(file: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(file)).convert("RGB").tobytes()
