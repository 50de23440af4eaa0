"""Encoder results, kept while they are useful: the pictures of one prompt share one pass."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from dalle_server.engine.runners.base import Runner, TextTokens

CAPACITY = 8  # texts; one takes 6 MB for Mini and 25 MB for Mega in fp32


class EncodedTexts:
    """Least recently used first out. The unconditional text is used by nearly every request, so it stays."""

    def __init__(self, runner: Runner, capacity: int = CAPACITY):
        self._runner = runner
        self._capacity = capacity
        self._encoded: OrderedDict[bytes, Any] = OrderedDict()

    def encode(self, text: TextTokens) -> Any:
        """One text at a time, also when several wait: its bits must not depend on its company."""
        name = text.ids[: text.length].tobytes()
        if name not in self._encoded:
            while len(self._encoded) >= self._capacity:
                self._encoded.popitem(last=False)
            self._encoded[name] = self._runner.encode([text])[0]
        self._encoded.move_to_end(name)
        return self._encoded[name]

    def clear(self) -> None:
        self._encoded.clear()
