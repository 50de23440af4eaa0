"""The AUTOMATIC1111 API on a live server, engine and all: progress, previews and interruption while it paints."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest
from PIL import Image

from tests.fake_runner import FakeRunner, fake_config
from tests.web.live import live
from tests.web.waits import until


def call(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_progress_shows_the_picture_grow_and_interrupt_ends_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    runner = FakeRunner(fake_config(grid_side=16), step_s=0.02)
    with live(tmp_path_factory.mktemp("data"), runner) as server:
        api = f"{server.url}/sdapi/v1"
        replies: list[tuple[int, Any]] = []
        body = {"prompt": "a red apple", "seed": 5}
        painting = threading.Thread(target=lambda: replies.append(call(f"{api}/txt2img", body)))
        painting.start()
        until(lambda: call(f"{api}/progress")[1]["current_image"] is not None)
        now = call(f"{api}/progress")[1]
        assert 0 < now["progress"] < 1
        assert now["state"]["sampling_step"] > 0
        assert now["eta_relative"] > 0
        so_far = Image.open(io.BytesIO(base64.b64decode(now["current_image"])))
        assert call(f"{api}/interrupt", {}) == (200, {})
        painting.join(10)
        ((status, reply),) = replies
        assert status == 200
        (shown,) = (Image.open(io.BytesIO(base64.b64decode(image))) for image in reply["images"])
        assert shown.size == so_far.size
        until(lambda: server.engine.stats().running == 0)

        runner.step_s = 0.0
        whole = Image.open(io.BytesIO(base64.b64decode(call(f"{api}/txt2img", body)[1]["images"][0])))
        first_row = (0, 0, 128, 8)
        assert so_far.crop(first_row).tobytes() == whole.crop(first_row).tobytes()
        assert so_far.tobytes() != whole.tobytes()
