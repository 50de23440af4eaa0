"""A request: everything in it is checked where it is built, and it travels as plain JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_server.errors import InvalidRequest
from dalle_server.request import FREE, MAX_SEED, GenerationRequest, ImageKey, SamplingParams

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
REQUESTS = st.builds(
    GenerationRequest,
    prompt=TEXT.map("a".__add__),
    images=st.lists(st.builds(ImageKey, st.integers(0, MAX_SEED), st.integers(0, 2**32 - 1)), min_size=1, max_size=4),
    sampling=st.builds(
        SamplingParams,
        temperature=st.none() | st.floats(0.01, 100),
        top_k=st.none() | st.integers(0, 2**31 - 1),
        top_p=st.none() | st.floats(1e-6, 1),
        condition_scale=st.none() | st.floats(0, 100),
    ),
    negative_prompt=TEXT,
    forced_tokens=st.lists(st.integers(FREE, 2**31 - 1), max_size=5),
    preview_every=st.integers(0, 1000),
    timeout_s=st.none() | st.floats(0.001, 1e9, exclude_max=True),
    client=TEXT,
)


@given(REQUESTS, st.lists(st.integers(FREE, 2**31 - 1), max_size=5), st.floats(0, 1e6, exclude_min=True))
def test_a_request_drawn_towards_tokens_survives_too(request_: GenerationRequest, near: list[int], pull: float) -> None:
    asked = dataclasses.replace(request_, near_tokens=tuple(near), pull=pull if near else 0.0)
    assert GenerationRequest.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked


@given(REQUESTS)
def test_a_request_survives_its_wire_form(request_: GenerationRequest) -> None:
    wire = json.loads(json.dumps(request_.to_dict()))
    assert GenerationRequest.from_dict(wire) == request_


def test_the_wire_form_of_version_1_stays_readable() -> None:
    wire = {
        "version": 1,
        "prompt": "a cat",
        "images": [[7, 0], [9007199254740993, 3]],
        "sampling": {"temperature": 0.5, "top_k": 50},
        "negative_prompt": "a dog",
        "forced_tokens": [-1, 5],
        "preview_every": 16,
        "timeout_s": 60.0,
        "client": "key",
        "id": "gen-1",
    }
    request = GenerationRequest.from_dict(wire)
    assert request.images == (ImageKey(7), ImageKey(9007199254740993, 3))
    assert request.sampling == SamplingParams(temperature=0.5, top_k=50)
    assert request.to_dict() == wire


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", " "),
        ("prompt", "\u200b\u2060 "),
        ("prompt", "\ud800"),
        ("images", 3),
        ("images", []),
        ("images", [7]),
        ("images", [[7, 2**32]]),
        ("images", [["7", 0]]),
        ("images", [[2**70, 0]]),
        ("images", [[True, 0]]),
        ("images", [[7, 0, 0]]),
        ("sampling", []),
        ("sampling", {"temprature": 1.0}),
        ("sampling", {"temperature": float("nan")}),
        ("sampling", {"top_k": 1.5}),
        ("sampling", {"top_p": 10**400}),
        ("negative_prompt", 3),
        ("forced_tokens", ["1"]),
        ("forced_tokens", "12"),
        ("forced_tokens", [2**70]),
        ("preview_every", "3"),
        ("preview_every", -1),
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("timeout_s", True),
        ("timeout_s", "1"),
        ("client", None),
        ("id", ""),
        ("version", 2),
        ("version", "1"),
        ("version", None),
        ("surprise", 1),
    ],
)
def test_a_wire_form_that_would_fault_the_engine_is_refused(field: str, value: Any) -> None:
    wire = {**GenerationRequest.of("a cat", seed=1).to_dict(), field: value}
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest.from_dict(wire)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("change", [{"preview_every": "3"}, {"images": (ImageKey(1), "a")}, {"sampling": {}}])
def test_a_python_caller_is_checked_as_well(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        dataclasses.replace(GenerationRequest.of("a cat"), **change)


@pytest.mark.parametrize("index", [2**70, -1, "a", 1.5, None])
def test_an_image_index_is_a_word_of_the_noises_counter(index: Any) -> None:
    with pytest.raises(InvalidRequest, match="image_index"):
        ImageKey(7, index)


@pytest.mark.parametrize("num_images", [0, -1, 10**9, "3", True, 2.0, None])
def test_the_number_of_pictures_is_checked_before_they_are_named(num_images: Any) -> None:
    with pytest.raises(InvalidRequest, match="num_images"):
        GenerationRequest.of("a cat", num_images)


def test_numbers_of_numpy_become_plain() -> None:
    numbers: list[Any] = [np.int64(2), np.uint64(5), np.float32(0.5)]
    request = GenerationRequest.of("a cat", *numbers[:2], sampling=SamplingParams(top_p=numbers[2]))
    assert json.dumps(request.to_dict())
    assert type(request.images[0].seed) is int
