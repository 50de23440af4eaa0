"""What layers begin with, looked up in the mapped checkpoint: a few rows of large tables that need no copy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.families.janus import JanusConfig


class DalleBartEmbeddings:
    """Token plus position: of a text's ids in front of the encoder, and of picture tokens in front of the decoder."""

    def __init__(self, tensors: Mapping[str, Any], config: DalleBartConfig):
        self._tables = {
            part: [tensors[f"{part}.{kind}.weight"] for kind in ("embed_tokens", "embed_positions")]
            for part in ("encoder", "decoder")
        }
        self._scale = np.float32(math.sqrt(config.d_model) if config.scale_embedding else 1.0)
        self._start = config.decoder_start_token_id

    def text(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """(T,) ids → (T, d)."""
        return self._lookup("encoder", ids, np.arange(len(ids)))

    def codes(self, last_tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """(N,) ids written before `positions` (N,) → (N, d); position 0 takes the start token."""
        return self._lookup("decoder", np.where(positions == 0, self._start, last_tokens), positions)

    def _lookup(self, part: str, ids: NDArray[Any], positions: NDArray[Any]) -> NDArray[np.float32]:
        tokens, places = self._tables[part]
        embedded: NDArray[np.float32] = tokens[ids].astype(np.float32) * self._scale
        embedded += places[positions].astype(np.float32)
        return embedded


class JanusEmbeddings:
    """Of a prompt's ids and of picture tokens, which have a table of their own. Positions come later."""

    def __init__(self, tensors: Mapping[str, Any], config: JanusConfig):
        self._texts, self._codes = tensors["embed_tokens.weight"], tensors["image_embed.weight"]
        self._start = config.start_row

    def text(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """(T,) ids → (T, d)."""
        found: NDArray[np.float32] = self._texts[ids].astype(np.float32)
        return found

    def codes(self, last_tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """(N,) ids written before `positions` (N,) → (N, d); position 0 takes the prompt's last token."""
        found: NDArray[np.float32] = self._codes[np.where(positions == 0, self._start, last_tokens)].astype(np.float32)
        return found
