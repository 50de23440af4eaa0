"""Checks of values that callers give: each raises InvalidRequest, naming the field, the value and what it may be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

from dalle_server.errors import InvalidRequest

_Number = TypeVar("_Number", int, float)

# Neither blanks and controls, nor what Unicode calls default-ignorable or draws as nothing.
_SEEN = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff]"
)

SHOWN_CHARS = 60  # of a value in a message


def shown(value: object) -> str:
    """The value as a message shows it: never longer than a line, whatever was sent."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"  # repr of a huge int is slow, and refused beyond 4300 digits
    text = repr(value[: SHOWN_CHARS + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN_CHARS + 2 else f"{text[:SHOWN_CHARS]}…"


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """The value as an int. Numpy's integers count; True and 2.5 do not."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidRequest(f"{name} must be a whole number, not {shown(value)}", param=name)
    return _within(name, int(value), low, high)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def number(name: str, value: Any, low: float, high: float) -> float:
    """The value as a float."""
    if not is_number(value):
        raise InvalidRequest(f"{name} must be a number, not {shown(value)}", param=name)
    if isinstance(value, Integral) and abs(int(value)) > 10**30:  # float() of it may overflow
        raise InvalidRequest(f"{name} must lie between {low} and {high}, not {shown(value)}", param=name)
    return _within(name, float(value), low, high)


def _within(name: str, value: _Number, low: _Number, high: _Number) -> _Number:
    if not low <= value <= high:  # NaN lies between no bounds
        raise InvalidRequest(f"{name} must lie between {low} and {high}, not {shown(value)}", param=name)
    return value


def text(name: str, value: Any) -> str:
    """The value as it is, if it is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text, not {shown(value)}", param=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"{name} must be text of whole characters, not {shown(value)}: {error.reason}"
        raise InvalidRequest(message, param=name) from None
    return value


def true_or_false(name: str, value: Any) -> bool:
    """Raises InvalidRequest for anything but a bool."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false, not {shown(value)}", param=name)
    return value


def is_blank(value: str) -> bool:
    """Whether nothing of the text can be seen: white space, controls, zero-width characters, fillers."""
    return _SEEN.search(value) is None


def known_fields(what: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses fields that nobody reads: a misspelt one would be lost without a word."""
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"{what} must be an object, not {shown(given)}", param=what)
    names = sorted(known)
    if unknown := sorted(str(name) for name in given if name not in names):
        message = f"{what} has no field {shown(unknown[0])}; it has {', '.join(names)}"
        raise InvalidRequest(message, param=unknown[0])


def sequence(name: str, value: Any) -> tuple[Any, ...]:
    """The value's items. Text is no sequence here."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidRequest(f"{name} must be a list, not {shown(value)}", param=name)
    return tuple(value)
