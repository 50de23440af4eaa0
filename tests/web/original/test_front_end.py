"""The front end of the first DALL-E servers, replayed against a listening server: a page of another origin, whose
requests carry a header that needs leave, and whose JSON goes as text.

From saharmor/dalle-playground, `interface/src/backend_api.js`: `/dalle` in June 2022, `/generate` in November 2022.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from typing import Any

import pytest
from PIL import Image

from tests.web.live import Live, live

PAGE = "https://saharmor.github.io"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("front_end"), cors_origins=("*",)) as server:
        yield server


def fetched(server: Live, method: str, path: str, headers: dict[str, str], body: str | None = None) -> str:
    """As a browser's fetch of another origin: the leave first, then the request; its answer must be readable."""
    asked = ", ".join(name.lower() for name in headers)
    leave = send(
        server,
        "OPTIONS",
        path,
        {"Origin": PAGE, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": asked},
    )
    allowed = {name.strip().lower() for name in leave.headers.get("Access-Control-Allow-Headers", "").split(",")}
    assert leave.status == 200 and {name.lower() for name in headers} <= allowed
    assert leave.headers.get("Access-Control-Allow-Origin") in ("*", PAGE)
    text = {} if body is None else {"Content-Type": "text/plain;charset=UTF-8"}
    reply = send(server, method, path, {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", **text, **headers}, body)
    assert reply.status == 200 and reply.headers.get("Access-Control-Allow-Origin") in ("*", PAGE)
    return reply.text


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    text: str


def send(server: Live, method: str, path: str, headers: dict[str, str], body: str | None = None) -> Reply:
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)) as connection:
        connection.request(method, path, body=body, headers=headers)
        reply = connection.getresponse()
        return Reply(reply.status, reply.headers, reply.read().decode())


def pictures(texts: list[str]) -> list[str | None]:
    return [Image.open(io.BytesIO(base64.b64decode(text))).format for text in texts]


@pytest.mark.parametrize("slash", ["", "/"])  # whether its user's backend URL ends in one
@pytest.mark.parametrize("path", ["/dalle", "/generate"])
def test_it_connects_and_paints(server: Live, path: str, slash: str) -> None:
    bypass = {"Bypass-Tunnel-Reminder": "go", "mode": "no-cors"}  # written among the headers by mistake, in 2022
    assert fetched(server, "GET", f"/{slash}", bypass)
    told: Any = json.loads(
        fetched(server, "POST", f"{slash}{path}", bypass, json.dumps({"text": "a red apple", "num_images": 2}))
    )
    images = told["generatedImgs"]
    assert pictures(images) == [told["generatedImgsFormat"]] * 2  # `data:image/${format};base64,…`


def test_a_refusal_is_one_that_it_can_show(server: Live) -> None:
    """It shows an error of its own for whatever is not 2xx; a refusal without CORS headers it could not tell apart."""
    reply = send(server, "POST", "/generate", {"Origin": PAGE}, json.dumps({"text": "x", "num_images": 10_000}))
    assert reply.status == 400 and reply.headers.get("Access-Control-Allow-Origin") in ("*", PAGE)
