"""The loop that writes pictures: start reading at `DecodeLoop.step`.

A loop lives and dies with its runner: after a fault the engine drops both and makes new ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.detokenizer import Detokenizer
from dalle_server.engine.encoded_texts import EncodedTexts
from dalle_server.engine.runners.base import PendingStep, Runner, StepRow
from dalle_server.engine.sequence import ImageGroup, ImageSequence
from dalle_server.engine.stats import Counters, EngineStats, Observer, notify
from dalle_server.engine.tracker import Place, RequestTracker
from dalle_server.errors import DalleServerError, GenerationFailed
from dalle_server.generation import Failed

# Tokens of texts that a step reads: beside running pictures as many as it has rows, which cost about as much, and never
# fewer than the first (a row costs little beside the weights); where no picture waits for it, as many as the second.
FEWEST_READ, MOST_READ = 16, 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step under way: which position of which picture it writes, and where its tokens come from."""

    sequences: Sequence[ImageSequence]
    rows: Sequence[StepRow]
    pending: PendingStep


class DecodeLoop:
    """`submit` may be called from any thread; `step` from one."""

    def __init__(
        self, runner: Runner, tracker: RequestTracker, counters: Counters, observer: Observer, *, detokenize_batch: int
    ):
        self.runner = runner
        self.tracker = tracker
        self.detokenizer = Detokenizer(
            self._detokenize,
            grid=(runner.config.picture.grid_height, runner.config.picture.grid_width),
            max_batch=detokenize_batch,
            on_image=tracker.deliver,
            on_preview=tracker.deliver_preview,
            on_error=self._lose_pixels,
        )
        self.step_begun: float | None = None  # time.monotonic() while a step is under way, for the watchdog
        self.is_abandoned = False  # after a fault; the engine has another loop by then, or none
        self._counters, self._observer = counters, observer
        self._texts = EncodedTexts(runner, self._admit, self._lose_text)
        self._launched: deque[LaunchedStep] = deque()
        self._decoding = threading.Lock()

    def hold(self) -> Place:
        """A place in the queue. Raises Overloaded when it is full."""
        return self.tracker.hold(self.detokenizer.backlog)

    def room_for(self, num_images: int, held: Place | None = None) -> AbstractContextManager[None]:
        """Holds places in the queue while a request is made. Raises Overloaded when it has no room."""
        return self.tracker.room_for(num_images, self.detokenizer.backlog, held)

    def submit(self, group: ImageGroup) -> None:
        """Accept a request that holds its places; a whole grid goes straight to pixels."""
        self.tracker.accept(group)
        if group.is_replay:
            for sequence in group.sequences:
                self.detokenizer.add_final(sequence)

    def step(self) -> bool:
        """Write one token of every running picture. False when there is nothing left to do."""
        begun = self.step_begun = time.monotonic()
        self.tracker.end_cancelled_and_expired()
        self._fill_free_slots()
        launched = self._launch()
        if launched:
            self._launched.append(launched)
        # The positions of the next step are known, so a runner with lookahead is a step ahead of what is read.
        if len(self._launched) > (self.runner.lookahead if launched else 0):
            self._read(self._launched.popleft(), begun)
        self.step_begun = None
        self.detokenizer.run_inline()
        return bool(self._launched) or self.tracker.has_steps

    def _fill_free_slots(self) -> None:
        """Give free slots to waiting pictures, and read on in the texts of those that have none yet: so much that a
        step takes about twice as long for it (at guidance 1, which has half the rows, up to three times).
        """
        while admitted := self.tracker.admit_next():
            self._texts.add(*admitted)
        num_rows = 2 * self.tracker.num_writing
        self._texts.read(max(num_rows, FEWEST_READ) if num_rows else MOST_READ)

    def _admit(self, sequence: ImageSequence, slot: int, conditional: Any, unconditional: Any) -> None:
        self.runner.admit(slot, conditional, unconditional)
        self.tracker.admitted(sequence)

    def _lose_text(self, group: ImageGroup) -> None:
        """Running out of memory at admission costs that request alone."""
        logger.warning("%s: out of memory at admission", group.handle.request.id)
        self.tracker.finish(group, Failed(GenerationFailed("not enough memory for this picture; try again later")))

    def _launch(self) -> LaunchedStep | None:
        """Start the next step of every running picture. Out of memory, the next smaller bucket is tried once."""
        sequences, rows = self.tracker.rows_to_launch()
        if not rows:
            return None
        try:
            return LaunchedStep(sequences, rows, self.runner.step(rows))
        except MemoryError:
            smaller = [bucket for bucket in self.runner.row_buckets if bucket <= max(row.slot for row in rows)]
            if not smaller:
                raise
        # Outside the handler: a traceback holds on to the tensors of the step that failed.
        logger.warning("out of memory with %d pictures in a step; going on with %d slots", len(rows), smaller[-1])
        self.tracker.shrink(smaller[-1])
        kept = [(sequence, row) for sequence, row in zip(sequences, rows, strict=True) if row.slot < smaller[-1]]
        sequences, rows = [sequence for sequence, _ in kept], [row for _, row in kept]
        return LaunchedStep(sequences, rows, self.runner.step(rows)) if rows else None

    def _read(self, launched: LaunchedStep, begun: float) -> None:
        """Wait for a step's tokens, write them down, and send what is finished or asked for on to pixels."""
        written = launched.pending.result()
        for sequence in self.tracker.write(launched.sequences, launched.rows, written):
            if sequence.is_complete:
                self.detokenizer.add_final(sequence)
            elif sequence.preview_is_due:
                self.detokenizer.add_preview(sequence)
        seconds = time.monotonic() - begun
        self._counters.count_step(len(launched.sequences), seconds)
        notify(self._observer.on_step, len(launched.sequences), seconds)

    def _detokenize(self, grids: NDArray[np.int32], wraps: bool) -> NDArray[np.uint8]:
        begun = time.monotonic()
        pixels = self.pixels_of(grids, wraps)
        self._counters.count_detokenize(time.monotonic() - begun)
        return pixels

    def pixels_of(self, grids: NDArray[np.int32], wraps: bool) -> NDArray[np.uint8]:
        """As the runner's `detokenize`, from any thread."""
        with self._decoding:  # a runner decodes for one thread at a time
            return self.runner.detokenize(grids, wraps=wraps)

    def _lose_pixels(self, sequences: Sequence[ImageSequence], error: Exception) -> None:
        """An error raised on purpose says itself what would help: broken weights stay broken."""
        logger.error("decoding %d pictures to pixels failed", len(sequences), exc_info=error)
        if not isinstance(error, DalleServerError):
            error = GenerationFailed("the tokens could not be decoded to pixels; try again")
        for sequence in sequences:
            self.tracker.lose(sequence, error)

    def seconds_in_call(self) -> float:
        """How long the runner has been at its present step or batch of pixels: what the watchdog looks at."""
        begun = [b for b in (self.step_begun, self.detokenizer.begun) if b is not None]
        return time.monotonic() - min(begun) if begun else 0.0

    def stats(self) -> EngineStats:
        return self.tracker.stats(self.detokenizer.backlog)
