"""The wire form of a generation's events: plain values and bytes, for another process to read. A leaf.

Pixels, tokens and log-probabilities go as little-endian buffers. A `Done` names its pictures instead of carrying them
again: each has come before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dalle_server import checks, errors
from dalle_server.errors import DalleServerError, InvalidRequest
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

EVENT_VERSION = 1
MAX_SIDE_PX = 2**16
MAX_COUNT = 2**40  # of anything that is counted
MAX_S = 1e12

_NAMES: dict[type[Event], str] = {
    Queued: "queued", Started: "started", Progress: "progress", Preview: "preview",
    ImageReady: "image", Done: "done", Failed: "failed", Cancelled: "cancelled",
}  # fmt: skip
_FIELDS: dict[str, frozenset[str]] = {
    "queued": frozenset({"position"}),
    "started": frozenset({"queue_s"}),
    "progress": frozenset({"tokens_done", "num_tokens", "eta_s"}),
    "preview": frozenset({"index", "tokens_done", "shape", "pixels"}),
    "image": frozenset({"index", "shape", "pixels", "tokens", "logprobs"}),
    "done": frozenset({"images", "queue_s", "total_s"}),
    "failed": frozenset({"error"}),
    "cancelled": frozenset({"reason"}),
}
_ERROR_FIELDS = ("kind", "code", "message", "param", "retry_after_s")
_ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, DalleServerError)
}  # fmt: skip
_Number = TypeVar("_Number", np.uint8, np.int32, np.float32)


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as text, numbers, lists and bytes; `EventReader.read` gives an equal one."""
    return {"version": EVENT_VERSION, "event": _NAMES[type(event)], **_told(event)}


def _told(event: Event) -> dict[str, Any]:
    match event:
        case Queued(position):
            return {"position": position}
        case Started(queue_s):
            return {"queue_s": queue_s}
        case Progress(tokens_done, num_tokens, eta_s):
            return {"tokens_done": tokens_done, "num_tokens": num_tokens, "eta_s": eta_s}
        case Preview(index, tokens_done, pixels):
            return {"index": index, "tokens_done": tokens_done, **_pixels(pixels)}
        case ImageReady(image):
            logprobs = None if image.logprobs is None else image.logprobs.astype("<f4").tobytes()
            tokens = image.tokens.astype("<i4").tobytes()
            return {"index": image.index, **_pixels(image.pixels), "tokens": tokens, "logprobs": logprobs}
        case Done(images, queue_s, total_s):
            return {"images": [image.index for image in images], "queue_s": queue_s, "total_s": total_s}
        case Failed(error):
            return {"error": error_to_dict(error)}
        case Cancelled(reason):
            return {"reason": reason}


def _pixels(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    return {"shape": list(pixels.shape), "pixels": pixels.tobytes()}


class EventReader:
    """Reads the events of one generation, in their order."""

    def __init__(self, request: GenerationRequest):
        self._request = request
        self._images: dict[int, GeneratedImage] = {}

    def read(self, wire: Mapping[str, Any]) -> Event:
        """Raises InvalidRequest, naming the field, for what `event_to_dict` does not write."""
        if not isinstance(wire, Mapping):
            raise InvalidRequest(f"an event must be an object, not {checks.shown(wire)}", param="event")
        version = checks.whole_number("version", wire.get("version"), 1, 2**31)
        if version > EVENT_VERSION:
            message = f"the event was written by a newer dalle-server (form {version}; this one reads {EVENT_VERSION})"
            raise InvalidRequest(message, param="version")
        name = wire.get("event")
        if not isinstance(name, str) or name not in _FIELDS:
            raise InvalidRequest(f"event must be one of {', '.join(_FIELDS)}, not {checks.shown(name)}", param="event")
        checks.known_fields(name, wire, _FIELDS[name] | {"version", "event"})
        if missing := sorted(_FIELDS[name] - set(wire)):
            raise InvalidRequest(f"the event {name} lacks {missing[0]}", param=missing[0])
        return self._event(name, wire)

    def _event(self, name: str, wire: Mapping[str, Any]) -> Event:
        match name:
            case "queued":
                return Queued(_count(wire, "position"))
            case "started":
                return Started(_seconds(wire, "queue_s"))
            case "progress":
                eta_s = None if wire["eta_s"] is None else _seconds(wire, "eta_s")
                return Progress(_count(wire, "tokens_done"), _count(wire, "num_tokens"), eta_s)
            case "preview":
                return Preview(self._index(wire["index"]), _count(wire, "tokens_done"), _read_pixels(wire))
            case "image":
                return ImageReady(self._image(wire))
            case "done":
                return Done(self._finished(wire["images"]), _seconds(wire, "queue_s"), _seconds(wire, "total_s"))
            case "failed":
                return Failed(error_from_dict(wire["error"]))
        return Cancelled(checks.text("reason", wire["reason"]))

    def _index(self, value: Any) -> int:
        return checks.whole_number("index", value, 0, len(self._request.images) - 1)

    def _image(self, wire: Mapping[str, Any]) -> GeneratedImage:
        index = self._index(wire["index"])
        tokens = _buffer("tokens", wire["tokens"], np.dtype(np.int32))
        logprobs = None
        if wire["logprobs"] is not None:
            told = _buffer("logprobs", wire["logprobs"], np.dtype(np.float32))
            if told.size != 2 * tokens.size:
                message = f"logprobs must be two for each of {tokens.size} tokens, not {told.size}"
                raise InvalidRequest(message, param="logprobs")
            logprobs = told.reshape(-1, 2)
        image = GeneratedImage(index, self._request.images[index], _read_pixels(wire), tokens, logprobs)
        self._images[index] = image
        return image

    def _finished(self, indices: Any) -> tuple[GeneratedImage, ...]:
        named = [self._index(index) for index in checks.sequence("images", indices)]
        if named != list(range(len(self._request.images))) or set(named) - set(self._images):
            raise InvalidRequest(f"images must name every picture that came, not {checks.shown(named)}", param="images")
        return tuple(self._images[index] for index in named)


def error_to_dict(error: DalleServerError) -> dict[str, Any]:
    """An error of our own tree; `error_from_dict` gives one that tells the same."""
    told = (type(error).__name__, error.code, error.message, error.param, error.retry_after_s)
    return dict(zip(_ERROR_FIELDS, told, strict=True))


def error_from_dict(wire: Mapping[str, Any]) -> DalleServerError:
    """Inverse of `error_to_dict`. Raises InvalidRequest, naming the field."""
    checks.known_fields("error", wire, _ERROR_FIELDS)
    if (kind := wire.get("kind")) not in _ERRORS:
        raise InvalidRequest(f"kind must be an error of dalle_server.errors, not {checks.shown(kind)}", param="kind")
    param, retry_after_s = wire.get("param"), wire.get("retry_after_s")
    error = _ERRORS[kind](
        checks.text("message", wire.get("message")),
        param=None if param is None else checks.text("param", param),
        retry_after_s=None if retry_after_s is None else checks.number("retry_after_s", retry_after_s, 0, MAX_S),
    )
    code = checks.text("code", wire.get("code"))
    if code != error.code:  # some say more than their kind
        error.code = code
    return error


def _count(wire: Mapping[str, Any], name: str) -> int:
    return checks.whole_number(name, wire[name], 0, MAX_COUNT)


def _seconds(wire: Mapping[str, Any], name: str) -> float:
    return checks.number(name, wire[name], 0, MAX_S)


def _read_pixels(wire: Mapping[str, Any]) -> NDArray[np.uint8]:
    shape = [checks.whole_number("shape", side, 1, MAX_SIDE_PX) for side in checks.sequence("shape", wire["shape"])]
    if len(shape) != 3 or shape[2] != 3:
        raise InvalidRequest(f"shape must be height, width, 3, not {checks.shown(shape)}", param="shape")
    pixels = _buffer("pixels", wire["pixels"], np.dtype(np.uint8))
    if pixels.size != shape[0] * shape[1] * 3:
        raise InvalidRequest(f"pixels must be {' × '.join(map(str, shape))} bytes, not {pixels.size}", param="pixels")
    return pixels.reshape(shape)


def _buffer(name: str, value: Any, dtype: np.dtype[_Number]) -> NDArray[_Number]:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise InvalidRequest(f"{name} must be bytes, not {checks.shown(value)}", param=name)
    if len(value) % dtype.itemsize:
        raise InvalidRequest(f"{name} must be whole numbers of {dtype.itemsize} bytes, not {len(value)}", param=name)
    read: NDArray[_Number] = np.frombuffer(value, dtype.newbyteorder("<")).astype(dtype)
    return read
