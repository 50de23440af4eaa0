"""Events go to another process and come back equal; what was not written by us is refused by the name of its field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dalle_server import errors
from dalle_server.errors import DalleServerError, GenerationFailed, InvalidRequest, Overloaded
from dalle_server.generation import (
    Cancelled,
    Done,
    Event,
    Failed,
    GeneratedImage,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.request import GenerationRequest
from dalle_server.wire import EVENT_VERSION, EventReader, error_from_dict, error_to_dict, event_to_dict

REQUEST = GenerationRequest.of("a cat", 2, seed=7)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.floats(0, 1e6)
COUNT = st.integers(0, 10_000)
PIXELS = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda size: arrays.arrays(np.uint8, (*size, 3), elements=st.integers(0, 255))
)
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DalleServerError)]
ERRORS = st.builds(
    lambda kind, message, param, retry_after_s: kind(message, param=param, retry_after_s=retry_after_s),
    st.sampled_from(KINDS),
    TEXT,
    st.none() | TEXT,
    st.none() | SECONDS,
)


def image(index: int, pixels: Any = None, logprobs: Any = None) -> GeneratedImage:
    pixels = np.full((2, 4, 3), 9 + index, np.uint8) if pixels is None else pixels
    return GeneratedImage(index, REQUEST.images[index], pixels, np.array([1, 2, 70_000], np.int32), logprobs)


EVENTS = st.one_of(
    st.builds(Queued, COUNT),
    st.builds(Started, SECONDS),
    st.builds(Progress, COUNT, COUNT, st.none() | SECONDS),
    st.builds(Preview, st.integers(0, 1), COUNT, PIXELS),
    st.builds(
        lambda index, pixels, told: ImageReady(image(index, pixels, told)),
        st.integers(0, 1),
        PIXELS,
        st.none() | arrays.arrays(np.float32, (3, 2), elements=st.floats(-np.inf, 0, width=32)),
    ),
    st.builds(Cancelled, TEXT),
    st.builds(Failed, ERRORS),
)


def over_the_wire(*events: Event) -> list[Event]:
    reader = EventReader(REQUEST)
    return [reader.read(msgpack.unpackb(msgpack.packb(event_to_dict(event)))) for event in events]


def told(event: Event) -> Any:
    """To compare: arrays as what they hold, errors as what they tell."""
    match event:
        case ImageReady(image):
            return _told_image(image)
        case Done(images, queue_s, total_s):
            return [*map(_told_image, images), queue_s, total_s]
        case Preview(index, tokens_done, pixels):
            return index, tokens_done, pixels.shape, pixels.tobytes()
        case Failed(error):
            return type(error), error.code, error.message, error.param, error.retry_after_s
    return event


def _told_image(image: GeneratedImage) -> Any:
    logprobs = None if image.logprobs is None else (image.logprobs.dtype, image.logprobs.tobytes())
    tokens = (image.tokens.dtype, image.tokens.tolist())
    return image.index, image.key, image.pixels.shape, image.pixels.tobytes(), tokens, logprobs


@given(EVENTS)
def test_an_event_survives_its_wire_form(event: Event) -> None:
    assert told(over_the_wire(event)[0]) == told(event)


def test_done_names_the_pictures_that_came_before_it() -> None:
    images = (image(0, logprobs=np.zeros((3, 2), np.float32)), image(1))
    sent: list[Event] = [ImageReady(images[1]), ImageReady(images[0]), Done(images, 0.5, 2.0)]
    assert [told(event) for event in over_the_wire(*sent)] == [told(event) for event in sent]
    assert len(msgpack.packb(event_to_dict(sent[2]))) < 100, "the pixels did not go twice"


def test_done_before_its_pictures_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="every picture that came"):
        over_the_wire(ImageReady(image(0)), Done((image(0), image(1)), 0.0, 0.0))


def test_an_error_keeps_a_code_that_says_more_than_its_kind() -> None:
    error = InvalidRequest("too large", param="model")
    error.code = "model_does_not_fit"
    again = error_from_dict(json.loads(json.dumps(error_to_dict(error))))
    assert (type(again), again.code, again.param) == (InvalidRequest, "model_does_not_fit", "model")
    assert Overloaded.code == error_from_dict(error_to_dict(Overloaded("full"))).code


PREVIEW = event_to_dict(Preview(0, 3, np.zeros((2, 2, 3), np.uint8)))
IMAGE = event_to_dict(ImageReady(image(0, logprobs=np.zeros((3, 2), np.float32))))
FAILED = event_to_dict(Failed(GenerationFailed("no")))


@pytest.mark.parametrize(
    ("wire", "param"),
    [
        ("queued", "event"),
        ({}, "version"),
        ({"version": EVENT_VERSION + 1, "event": "queued", "position": 1}, "version"),
        ({"version": 1, "event": "exploded"}, "event"),
        ({"version": 1, "event": ["queued"], "position": 1}, "event"),
        ({"version": 1, "event": "queued"}, "position"),
        ({"version": 1, "event": "queued", "position": -1}, "position"),
        ({"version": 1, "event": "queued", "position": 1, "mood": 1}, "mood"),
        ({"version": 1, "event": "started", "queue_s": float("nan")}, "queue_s"),
        ({"version": 1, "event": "cancelled", "reason": 5}, "reason"),
        (PREVIEW | {"index": 2}, "index"),
        (PREVIEW | {"shape": [2, 2, 4]}, "shape"),
        (PREVIEW | {"shape": [2, 0, 3]}, "shape"),
        (PREVIEW | {"shape": [2, 3, 3]}, "pixels"),
        (PREVIEW | {"pixels": "text"}, "pixels"),
        (IMAGE | {"tokens": b"12345"}, "tokens"),
        (IMAGE | {"logprobs": bytes(4)}, "logprobs"),
        (FAILED | {"error": "no"}, "error"),
        (FAILED | {"error": FAILED["error"] | {"kind": "Exception"}}, "kind"),
        (FAILED | {"error": FAILED["error"] | {"message": None}}, "message"),
        (FAILED | {"error": FAILED["error"] | {"retry_after_s": -1}}, "retry_after_s"),
    ],
)
def test_what_we_did_not_write_is_refused_by_name(wire: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EventReader(REQUEST).read(wire)
    assert caught.value.param == param


def test_a_reader_keeps_what_it_read_apart_from_the_buffer() -> None:
    buffer = bytearray(event_to_dict(ImageReady(image(0)))["pixels"])
    wire = {**event_to_dict(ImageReady(image(0))), "pixels": buffer}
    read = EventReader(replace(REQUEST)).read(wire)
    assert isinstance(read, ImageReady)
    buffer[:] = bytes(len(buffer))
    assert (read.image.pixels == 9).all()
