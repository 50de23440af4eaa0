"""Pictures that a client sends: files of a form, or base64 and data URLs inside JSON."""

from __future__ import annotations

import base64
import binascii
import re

from flask import request

from dalle_server.errors import InvalidRequest

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def form_fields() -> dict[str, str]:
    """The text of the current request's form. Raises InvalidRequest where no program can tell its parts."""
    if request.mimetype == "multipart/form-data" and not request.mimetype_params.get("boundary"):
        raise InvalidRequest(
            "Content-Type: multipart/form-data names no boundary; leave this header to the program that writes the form"
        )
    return request.form.to_dict()


def form_files(*names: str) -> list[bytes]:
    """What the current request's form holds under these names. Raises InvalidRequest for text where a file belongs: a
    mask that nobody sees would let the whole picture be painted over.
    """
    for name in names:
        if request.form.get(name):
            message = f"{name} must be a file, and it came as text; send it as a part of the form with a filename"
            raise InvalidRequest(message, param=name)
    return [file.read() for name in names for file in request.files.getlist(name)]


def form_file(name: str) -> bytes | None:
    """The one file of the form under this name; empty ones, as browsers send for a field that is left, are none.

    Raises InvalidRequest for several: one of them would be dropped without a word.
    """
    found = [file for file in form_files(name) if file]
    if len(found) > 1:
        raise InvalidRequest(f"{name}: {len(found)} files were sent; send one", param=name)
    return found[0] if found else None


def decode_base64(text: str, param: str) -> bytes:
    """The bytes of base64 text or of a `data:` URL. Raises InvalidRequest; nothing is ever fetched."""
    if _REMOTE.match(text):
        raise InvalidRequest(
            f"{param} is the address of a picture, and this server fetches none; send the picture itself, as base64 "
            "or as a data: URL",
            param=param,
        )
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{param} must be base64: {error}", param=param) from None
