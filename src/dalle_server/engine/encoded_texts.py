"""The texts of pictures that have a slot: read a few tokens a step, and kept while they are useful.

A prompt may take as long to read as many steps. So a step reads a part of it, and running pictures go on in between;
of several texts the one goes first of which the least is read, so that a short one does not wait for a long one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from dalle_server.engine.runners.base import EncodedText, Runner, TextTokens
from dalle_server.engine.sequence import ImageGroup, ImageSequence

CAPACITY_BYTES = 256 << 20  # a short prompt takes 3 MB for Mini, 2 for Janus-Pro-1B; the longest of the latter 130


class EncodedTexts:
    """Pictures of one prompt share one pass over it, and so do those that come soon after: least recently used first
    out. What a waiting picture needs stays, however large it is. A text without a prompt is as long as the other one
    (Janus) or always the same (DalleBart): it is kept like any.

    `on_read(picture, slot, conditional, unconditional)` may raise MemoryError; `on_no_memory` gets the request that it
    costs.
    """

    def __init__(
        self,
        runner: Runner,
        on_read: Callable[[ImageSequence, int, Any, Any], None],
        on_no_memory: Callable[[ImageGroup], None],
        capacity_bytes: int = CAPACITY_BYTES,
    ):
        self._runner = runner
        self._on_read, self._on_no_memory = on_read, on_no_memory
        self._capacity_bytes = capacity_bytes
        self._encoded: OrderedDict[bytes, EncodedText] = OrderedDict()
        self._waiting: dict[ImageSequence, int] = {}  # picture → its slot

    @property
    def nbytes(self) -> int:
        return sum(encoded.nbytes for encoded in self._encoded.values())

    def add(self, sequence: ImageSequence, slot: int) -> None:
        """A picture has a slot and waits for its texts."""
        self._waiting[sequence] = slot

    def read(self, num_tokens: int) -> None:
        """Read about so many tokens, and hand over the pictures whose texts are whole."""
        if not self._waiting:  # nor has anything changed since somebody did
            return
        self._waiting = {sequence: slot for sequence, slot in self._waiting.items() if sequence.slot == slot}
        self._hand_over()
        while num_tokens > 0 and self._waiting:
            num_tokens -= self._read_next(num_tokens)
            self._hand_over()
        self._trim()

    def _hand_over(self) -> None:
        for sequence, slot in list(self._waiting.items()):
            if sequence not in self._waiting:  # lost with a sibling, earlier in this loop
                continue
            texts = [self._encoded.get(_name(text)) for text in _texts(sequence)]
            if not all(text is not None and text.is_whole for text in texts):
                continue
            for text in _texts(sequence):
                self._encoded.move_to_end(_name(text))
            del self._waiting[sequence]
            try:
                self._on_read(sequence, slot, *texts)
            except MemoryError:
                self._lose(sequence.group)

    def _read_next(self, num_tokens: int) -> int:
        """→ how many it were. Each text is read alone: its bits must not depend on its company."""
        sequence, text = min(self._unread(), key=lambda unread: self._num_read(unread[1]))
        name, begun = _name(text), self._num_read(text)
        try:
            if name not in self._encoded:
                self._encoded[name] = self._runner.open_text(text)
            self._runner.read_text(self._encoded[name], num_tokens)
        except MemoryError:
            self._encoded.pop(name, None)
            self._lose(sequence.group)
            return 0
        return self._num_read(text) - begun

    def _unread(self) -> Iterator[tuple[ImageSequence, TextTokens]]:
        for sequence in self._waiting:
            for text in _texts(sequence):
                encoded = self._encoded.get(_name(text))
                if encoded is None or not encoded.is_whole:
                    yield sequence, text

    def _num_read(self, text: TextTokens) -> int:
        encoded = self._encoded.get(_name(text))
        return encoded.num_read if encoded else 0

    def _lose(self, group: ImageGroup) -> None:
        """Its pictures wait no longer; what no other one needs is given up, since memory is short."""
        self._waiting = {sequence: slot for sequence, slot in self._waiting.items() if sequence.group is not group}
        self._trim(0)
        self._on_no_memory(group)

    def _trim(self, capacity_bytes: int | None = None) -> None:
        """Down to the capacity, from the least recently used; and what nobody reads to its end goes."""
        most = self._capacity_bytes if capacity_bytes is None else capacity_bytes
        needed = {_name(text) for sequence in self._waiting for text in _texts(sequence)}
        excess = self.nbytes - most  # counted down: there may be thousands of texts
        for name, encoded in list(self._encoded.items()):
            if name not in needed and (not encoded.is_whole or excess > 0):
                excess -= encoded.nbytes
                del self._encoded[name]


def _texts(sequence: ImageSequence) -> tuple[TextTokens, TextTokens]:
    return sequence.group.conditional, sequence.group.unconditional


def _name(text: TextTokens) -> bytes:
    return text.ids[: text.length].tobytes()
