"""What nobody sends by accident: every route that reads JSON refuses it in words, at once, and goes on working."""

import json

import pytest
from flask.testing import FlaskClient

from tests.web.scripted_engine import ScriptedEngine

# route → the field with the text, and the one that counts pictures
ROUTES = {
    "/dalle": ("text", "num_images"),
    "/v1/images/generations": ("prompt", "n"),
    "/v1/jobs": ("prompt", "num_images"),
    "/sdapi/v1/txt2img": ("prompt", "batch_size"),
}
RAW = {
    "nothing": b"",
    "spaces": b"  \n",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1e999",
    "half an object": b'{"prompt": "x"',
    "not UTF-8": b'{"prompt": "\xff\xfe", "text": "\xff"}',
    "a lone surrogate": b'{"prompt": "\\ud800", "text": "\\ud800"}',
    "depth 10,000": b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "NaN": b'{"prompt": NaN, "text": NaN}',
    "a form": b"prompt=x&n=1",
}
COUNTS = [0, -1, 10**9, 10**400, 1.5, True, "3", [], {}, "1; DROP TABLE jobs"]
BLANK = ["", " ", "\t\n", "\u2003", "\x00", None]
NO_TEXT = [3, [], {"a": 1}]
ODD_BUT_FINE = ["a\x00b", "\u202eelppa", "🍎" * 200, "<script>alert(1)</script>", "../../etc/passwd", "\ufeffx"]


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def post(client: FlaskClient, route: str, **fields: object) -> int:
    text, count = ROUTES[route]
    return client.post(route, data=json.dumps({text: "x", count: 1} | fields)).status_code


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
def test_what_is_no_request_is_refused(client: FlaskClient, route: str, body: bytes) -> None:
    reply = client.post(route, data=body)
    assert reply.status_code == 400
    assert reply.json
    assert post(client, route) in (200, 202)


COERCES = "/sdapi/v1/txt2img"  # as its own server does: "3", 1.5 and True are whole numbers there, 3 is a text


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: repr(count)[:20])
def test_odd_counts_are_refused(client: FlaskClient, engine: ScriptedEngine, route: str, count: object) -> None:
    taken = route == COERCES and count in ("3", 1.5, True)
    assert post(client, route, **{ROUTES[route][1]: count}) == (200 if taken else 400)
    assert len(engine.requests) == taken


@pytest.mark.parametrize("text", [*BLANK, *NO_TEXT], ids=repr)
def test_a_text_that_says_nothing_is_refused(
    client: FlaskClient, engine: ScriptedEngine, route: str, text: object
) -> None:
    taken = route == COERCES and text in [*BLANK, 3]
    assert post(client, route, **{ROUTES[route][0]: text}) == (200 if taken else 400)
    assert len(engine.requests) == taken


@pytest.mark.parametrize("text", ODD_BUT_FINE, ids=ascii)
def test_an_odd_text_is_a_text(client: FlaskClient, route: str, text: str) -> None:
    assert post(client, route, **{ROUTES[route][0]: text}) in (200, 202)


def test_a_megabyte_of_prompt_is_too_large(client: FlaskClient, route: str) -> None:
    assert post(client, route, **{ROUTES[route][0]: "x" * 2**20}) in (400, 413)
    assert post(client, route, **{ROUTES[route][0]: "x" * 20 * 2**20}) == 413


@pytest.mark.parametrize("seed", [-3, 2**63, 2**64, 10**400, 1.5, "7", True])
def test_seeds_out_of_range_are_refused(client: FlaskClient, route: str, seed: object) -> None:
    if route != "/dalle":  # the original has no seed
        taken = route == COERCES and seed in (-3, 1.5, "7", True)
        assert post(client, route, seed=seed) == (200 if taken else 400)
