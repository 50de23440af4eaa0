"""API keys: read from the settings, found in requests, and guessed at no more than ten times a minute."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import threading
from collections.abc import Iterable, Iterator, Mapping

from werkzeug.datastructures import Headers

from dalle_server.errors import ConfigError, RateLimited, Unauthorized
from dalle_server.web.access.rates import SlidingWindow
from dalle_server.words import expanded

MIN_KEY_CHARS = 8
BAD_KEYS_PER_MINUTE = 10
_SENDABLE = re.compile(r"[^\s\x00-\x1f\x7f,:]+")  # what a header can carry whole


class Keys:
    """The keys that may use the API. Only digests are kept."""

    def __init__(self, keys: Mapping[str, str]):
        self._names = {digest(key.encode()): name for name, key in keys.items()}

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Keys:
        """Entries `name:key`, bare keys, and `@FILE` with one entry a line (# begins a comment).

        Raises ConfigError for what could never match, without showing it, and for a file without a key.
        """
        keys: dict[str, str] = {}
        for entry, where in _expand(entries):
            name, key = _split(entry, where)
            if keys.setdefault(name, key) != key:
                raise _wrong(where, f"the name {name!r} has two keys; give each its own name")
            if len(set(keys.values())) < len(keys):
                raise _wrong(where, f"{name!r} has the key of another name; give each name a key of its own")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._names)

    def name_of(self, key: bytes) -> str | None:
        """The name of a right key. Takes the same time for every wrong one."""
        asked, found = digest(key), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, asked):
                found = name
        return found


class Guesses:
    """Looks keys up. A right key always opens; an address that sent many wrong ones is told to wait with its next."""

    def __init__(self, keys: Keys):
        self._keys = keys
        self._wrong = SlidingWindow(BAD_KEYS_PER_MINUTE)
        self._lock = threading.Lock()  # one failure at a time: many at once must not all find the last place free

    def find(self, presented: Iterable[bytes], address: str) -> tuple[str, bytes]:
        """Name and bytes of the first right key. Raises Unauthorized, or RateLimited after too many failures."""
        presented = list(presented)
        for key in presented:
            name = self._keys.name_of(key)
            if name is not None:
                return name, key
        if not presented:
            raise Unauthorized("an API key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`")
        with self._lock:
            wait_s = self._wrong.take(address)
        if wait_s:
            raise RateLimited("too many wrong API keys from this address", retry_after_s=wait_s)
        raise Unauthorized("the API key is not known to this server")


def presented_keys(headers: Headers) -> Iterator[bytes]:
    """Every key that a request brings: `Authorization: Bearer`, `x-api-key`, or HTTP Basic (AUTOMATIC1111's clients).

    All of them count, because clients fill in what their user left empty ("Bearer ", "Bearer unused"). Bytes, because
    that is what a header has: a key in UTF-8 arrives so, or as Latin-1 from clients that write headers by the book.
    """
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    candidates = [headers.get("x-api-key", "").encode("latin-1", "replace").strip()]
    if scheme.lower() == "bearer":
        candidates.insert(0, value.encode("latin-1", "replace").strip())
    elif scheme.lower() == "basic":
        user, _, password = _decoded(value).partition(b":")
        candidates = [password, user, *candidates]
    for key in filter(None, candidates):
        yield key
        if not key.isascii():
            yield key.decode("latin-1").encode()


def client_name(key: bytes) -> str:
    """What stands for a key in the books: fairness, rates and ownership count against it."""
    return f"key:{digest(key).hex()[:16]}"


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _decoded(basic: str) -> bytes:
    try:
        return base64.b64decode(basic.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _split(entry: str, where: str) -> tuple[str, str]:
    name, colon, key = (part.strip() for part in entry.partition(":"))
    if not colon:
        name, key = f"key-{digest(entry.encode()).hex()[:8]}", entry
    shown = f"the key of {name!r}" if colon else "a key"
    if colon and not name:
        raise _wrong(where, "an entry begins with a colon; write name:key")
    if len(key) < MIN_KEY_CHARS:
        raise _wrong(where, f"{shown} has fewer than {MIN_KEY_CHARS} characters")
    if not _SENDABLE.fullmatch(key):
        raise _wrong(
            where, f"{shown} has a blank, a comma, a colon or a control character, which no request could send"
        )
    return name, key


def _expand(entries: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(entry, where it stands)"""
    for entry in entries:
        if not entry.startswith("@"):
            yield entry, "api_keys"
            continue
        try:
            text = expanded(entry[1:]).read_text(encoding="utf-8-sig")  # Windows editors begin with a mark
        except OSError as error:
            raise _wrong("api_keys", f"cannot read {entry[1:]}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise _wrong("api_keys", f"{entry[1:]} is not UTF-8 text; save it as UTF-8") from None
        except ValueError as error:
            raise _wrong("api_keys", f"cannot read {entry[1:]}: {error}") from None
        lines = [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()) if line]
        if not lines:
            raise _wrong(
                "api_keys", f"{entry[1:]} names no key; write one a line, or leave api_keys out to ask for none"
            )
        yield from ((line, entry[1:]) for line in lines)


def _wrong(where: str, what: str) -> ConfigError:
    return ConfigError(f"api_keys: {what}" + ("" if where == "api_keys" else f" (in {where})"), param="api_keys")
