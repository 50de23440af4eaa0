"""Token grids as text: the fewest bits that hold an id, most significant first, in base64."""

from __future__ import annotations

import base64
import binascii

import numpy as np
from numpy.typing import NDArray

from dalle_server.request import Tokens

MAX_TOKEN_BITS = 16


def pack_tokens(tokens: Tokens) -> tuple[str, int]:
    """(I,) ids → base64 of their bits, most significant first, and the bits of one id."""
    bits = max(1, int(tokens.max()).bit_length())
    wide = np.unpackbits(tokens.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    return base64.b64encode(np.packbits(wide[:, MAX_TOKEN_BITS - bits :]).tobytes()).decode(), bits


def unpack_tokens(packed: str, bits: int, count: int) -> Tokens:
    """Inverse of pack_tokens. Raises ValueError when the text is not `count` ids of `bits` bits."""
    flat = unpack_bits(packed, count * bits).reshape(count, bits).astype(np.int32)
    return np.asarray(flat @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int32)), dtype=np.int32)


def unpack_bits(packed: str, count: int) -> NDArray[np.uint8]:
    try:
        raw = base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    if len(raw) != -(-count // 8):
        raise ValueError(f"{len(raw)} bytes cannot hold {count} bits")
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=count)
