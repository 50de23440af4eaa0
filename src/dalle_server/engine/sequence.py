"""What the engine knows of one accepted request, and of each of its pictures while they are written."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from dalle_server.engine.runners.base import LOGPROBS, StepRow, TextTokens
from dalle_server.errors import DalleServerError
from dalle_server.generation import GeneratedImage, Generation
from dalle_server.request import FREE, ImageKey, LogProbs, Tokens

NOTHING: frozenset[str] = frozenset()
ONLY_LOGPROBS = frozenset({LOGPROBS})


@dataclass(slots=True, eq=False)
class ImageSequence:
    """One picture: I tokens, some perhaps given. `launched` runs ahead of `written` by the runner's lookahead."""

    group: ImageGroup
    index: int  # position in the request
    key: ImageKey
    tokens: Tokens  # (I,), FREE where nothing is written yet
    logprobs: LogProbs | None = None  # (I, 2), NaN where nothing is written yet; None: nobody asked
    launched: int = 0
    written: int = 0
    slot: int | None = None  # while it runs
    is_admitted: bool = False  # its slot has its texts

    @property
    def is_complete(self) -> bool:
        return self.written == self.tokens.size

    @property
    def steps_left(self) -> int:
        return self.tokens.size - self.written

    @property
    def preview_is_due(self) -> bool:
        handle = self.group.handle
        every = handle.preview_every if handle.previewed in (None, self.index) else 0
        return every > 0 and self.written % every == 0

    def launch(self) -> StepRow:
        """The row that writes the next position; counts it as launched."""
        assert self.slot is not None, "only a running picture can be launched"
        position = self.launched
        self.launched += 1
        forced = int(self.tokens[position])
        wants = NOTHING if self.logprobs is None else ONLY_LOGPROBS
        near, pull = self.group.nearness(position)
        return StepRow(self.slot, position, self.key, self.group.handle.sampling, forced, wants, near, pull)

    def awaits(self, row: StepRow) -> bool:
        """Whether the answer to this row is still wanted: not after a cancel, or an eviction."""
        return self.slot == row.slot and self.written == row.position

    def write(self, token: int, logprobs: LogProbs | None = None) -> None:
        self.tokens[self.written] = token
        if self.logprobs is not None and logprobs is not None:
            self.logprobs[self.written] = logprobs
        self.written += 1

    def restart(self) -> None:
        """Begin again in another slot. What is written stays as forced tokens, so the picture cannot change."""
        self.launched = self.written = 0


@dataclass(slots=True, eq=False)
class ImageGroup:
    """One accepted request: the caller's handle, both texts, its sequences, and the pictures finished so far."""

    handle: Generation
    conditional: TextTokens
    unconditional: TextTokens
    sequences: list[ImageSequence] = field(default_factory=list)
    images: dict[int, GeneratedImage] = field(default_factory=dict)
    lost: dict[int, DalleServerError] = field(default_factory=dict)  # pictures that failed while their siblings go on
    started_at: float | None = None  # time.monotonic() of the first picture's admission
    position: int | None = None  # what the last Queued event said
    reported_at: float = 0.0  # time.monotonic() of the last Progress event

    @classmethod
    def of(cls, handle: Generation, conditional: TextTokens, unconditional: TextTokens, num_tokens: int) -> ImageGroup:
        group = cls(handle, conditional, unconditional)
        given = handle.request.forced_tokens or (FREE,) * num_tokens
        for index, key in enumerate(handle.request.images):
            logprobs = np.full((num_tokens, 2), np.nan, np.float32) if handle.request.logprobs else None
            group.sequences.append(ImageSequence(group, index, key, np.array(given, np.int32), logprobs))
        if group.is_replay:
            for sequence in group.sequences:
                sequence.launched = sequence.written = num_tokens
        return group

    @property
    def client(self) -> str:
        return self.handle.request.client

    @property
    def ended(self) -> bool:
        return self.handle.terminal is not None

    @property
    def is_replay(self) -> bool:
        """All tokens were given, and nobody asks how likely they are: there is nothing to decode."""
        request = self.handle.request
        return FREE not in (request.forced_tokens or (FREE,)) and not request.logprobs

    def nearness(self, position: int) -> tuple[int, float]:
        """What the token at `position` is drawn towards, and how strongly."""
        request = self.handle.request
        near = request.near_tokens[position] if request.near_tokens else FREE
        return near, 0.0 if near == FREE else request.pull

    @property
    def is_seamless(self) -> bool:
        return self.handle.request.seamless

    @property
    def tokens_done(self) -> int:
        return sum(sequence.written for sequence in self.sequences)

    @property
    def num_tokens(self) -> int:
        return sum(sequence.tokens.size for sequence in self.sequences)

    def progress_is_due(self, now: float, every_s: float) -> bool:
        """At most every `every_s`, and always for the last token."""
        return now - self.reported_at >= every_s or self.tokens_done == self.num_tokens

    @property
    def queue_s(self) -> float:
        """Seconds from acceptance to the first picture's admission (or until now)."""
        return (self.started_at or time.monotonic()) - self.handle.submitted_at

    @property
    def total_s(self) -> float:
        return time.monotonic() - self.handle.submitted_at
