"""What a request's headers are refused for, before its body matters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient

MakeApp = Callable[..., Flask]


def test_large_bodies_are_413_by_route(client: FlaskClient) -> None:
    body = b'{"text": "' + b"x" * (1 << 20) + b'"}'
    reply = client.post("/dalle", data=body)
    assert reply.status_code == 413 and reply.json is not None
    assert client.post("/v1/images/variations", data=body).status_code != 413


def test_json_bodies_may_be_larger_than_uploads(make_app: MakeApp) -> None:
    client = make_app(max_upload_bytes=1024).test_client()
    assert client.post("/dalle", json={"text": "x" * 2000}).status_code == 200


@pytest.mark.parametrize("character", ["a", "é", "字", "😀"])
def test_32000_characters_of_any_script_fit(client: FlaskClient, character: str) -> None:
    """Escaped, as Python's json writes them, an emoji is twelve bytes."""
    assert client.post("/v1/images/generations", json={"prompt": character * 32_000}).status_code == 200


def test_pictures_that_are_ignored_are_not_too_large(client: FlaskClient) -> None:
    """ControlNet's, which AUTOMATIC1111's clients send beside the prompt."""
    scripts = {"controlnet": {"args": [{"image": "A" * (4 << 20)}]}}
    assert client.post("/sdapi/v1/txt2img", json={"prompt": "x", "alwayson_scripts": scripts}).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_a_compressed_body_is_415(client: FlaskClient, encoding: str) -> None:
    reply = client.post("/v1/images/generations", data=b"\x1f\x8b", headers={"Content-Encoding": encoding})
    assert reply.status_code == 415 and reply.json is not None
    assert encoding in reply.json["error"]["message"] and reply.json["error"]["code"] == "unsupported_media_type"
    plain = client.post("/v1/images/generations", json={"prompt": "x"}, headers={"Content-Encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img/", "/sdapi/v1/samplers/", "/v1/models/", "/dalle/"])
def test_a_slash_at_the_end_changes_nothing(client: FlaskClient, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == (405 if path in ("/sdapi/v1/txt2img/", "/dalle/") else 200)


@pytest.mark.parametrize("element", [b"0,", b"[],", b'{"a":0},', b'{"a":[{"b":0}]},'])
def test_a_body_of_many_elements_is_refused_unread(client: FlaskClient, element: bytes) -> None:
    """16 MiB of them would cost a second of processor time and 400 MB, before the request holds a place."""
    body = b'{"prompt": "x", "alwayson_scripts": [' + element * ((8 << 20) // len(element)) + b"0]}"
    reply = client.post("/sdapi/v1/txt2img", data=body)
    assert reply.status_code == 413 and "elements" in reply.text


def test_a_prompt_of_commas_is_one(client: FlaskClient) -> None:
    assert client.post("/v1/images/generations", json={"prompt": "," * 32_000}).status_code == 200
