"""Token grids to pixels, off the step's critical path: final pictures first, previews when there is time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.sequence import ImageSequence
from dalle_server.generation import UNWRITTEN_GREY
from dalle_server.request import FREE, Pixels, Tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Preview:
    tokens: Tokens  # as they were when the preview was asked for
    tokens_done: int


class Detokenizer:
    """Queues grids and decodes them: in a worker thread after `start`, else inside `run_inline`.

    `decode(grids, wraps)` makes pixels, with edges that meet or without.

    A picture has at most one preview queued or under way: a newer one replaces it, its final grid drops it.
    """

    def __init__(
        self,
        decode: Callable[[NDArray[np.int32], bool], NDArray[np.uint8]],
        *,
        grid: tuple[int, int],
        max_batch: int,
        on_image: Callable[[ImageSequence, Pixels], None],
        on_preview: Callable[[ImageSequence, int, Pixels], None],
        on_error: Callable[[Sequence[ImageSequence], Exception], None],
    ):
        self._decode = decode
        self._grid = grid
        self._max_batch = max_batch
        self._on_image, self._on_preview, self._on_error = on_image, on_preview, on_error
        self._finals: deque[ImageSequence] = deque()
        self._previews: dict[ImageSequence, _Preview] = {}
        self._num_decoding = 0  # finals taken from the queue and not delivered yet
        self._changed = threading.Condition()
        self._closed = False
        self._worker: threading.Thread | None = None
        self.begun: float | None = None  # time.monotonic() while a batch is under way, for the watchdog

    @property
    def backlog(self) -> int:
        """Finished grids that are not pixels yet."""
        return len(self._finals) + self._num_decoding

    def add_final(self, sequence: ImageSequence) -> None:
        with self._changed:
            self._previews.pop(sequence, None)
            self._finals.append(sequence)
            self._changed.notify_all()

    def add_preview(self, sequence: ImageSequence) -> None:
        with self._changed:
            self._previews[sequence] = _Preview(sequence.tokens.copy(), sequence.written)
            self._changed.notify_all()

    def run_inline(self) -> None:
        """Decode all that is queued, unless a worker does."""
        while self._worker is None and self._run_one():
            pass

    def _run_one(self) -> bool:
        """Decode one batch of finals, or one preview. False when nothing was queued."""
        with self._changed:
            finals = [self._finals.popleft() for _ in range(min(self._max_batch, len(self._finals)))]
            preview = None if finals or not self._previews else self._pop_preview()
            self._num_decoding = len(finals)
        self.begun = time.monotonic()
        if finals:
            wanted = [sequence for sequence in finals if not sequence.group.ended]
            self._decode_finals([sequence for sequence in wanted if not sequence.group.is_seamless], wraps=False)
            self._decode_finals([sequence for sequence in wanted if sequence.group.is_seamless], wraps=True)
        elif preview and not preview[0].group.ended:
            self._decode_preview(*preview)
        self.begun = None
        self._num_decoding = 0
        return bool(finals or preview)

    def _pop_preview(self) -> tuple[ImageSequence, _Preview]:
        oldest = next(iter(self._previews))
        return oldest, self._previews.pop(oldest)

    def _decode_finals(self, sequences: Sequence[ImageSequence], *, wraps: bool) -> None:
        if not sequences:
            return
        try:
            pixels = self._decode(np.stack([sequence.tokens for sequence in sequences]), wraps)
        except Exception as error:
            if len(sequences) == 1:
                self._on_error(sequences, error)
                return
            logger.warning("%d pictures could not be decoded together; now one by one", len(sequences), exc_info=True)
            for sequence in sequences:  # so that the one at fault costs no neighbour
                self._decode_finals([sequence], wraps=wraps)
            return
        for sequence, picture in zip(sequences, pixels, strict=True):
            self._on_image(sequence, picture)

    def _decode_preview(self, sequence: ImageSequence, preview: _Preview) -> None:
        written = preview.tokens != FREE
        # The decoder needs an id everywhere; repeating the last one keeps the seam of the written part calm.
        filler = preview.tokens[max(preview.tokens_done - 1, 0)]
        grid = np.where(written, preview.tokens, filler)
        try:
            pixels = self._decode(grid[None], sequence.group.is_seamless)[0]
        except Exception:
            logger.exception("a preview could not be decoded; the picture itself goes on")
            return
        self._on_preview(sequence, preview.tokens_done, paint_unwritten(pixels, written, self._grid))

    def start(self) -> None:
        self._worker = threading.Thread(target=self._run, name="detokenizer", daemon=True)
        self._worker.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._finals or self._previews or self._closed)
                if self._closed:
                    return
            self._run_one()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop the worker after the batch it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join(timeout_s)


def paint_unwritten(pixels: Pixels, written: NDArray[np.bool_], grid: tuple[int, int]) -> Pixels:
    """A copy with the squares of tokens that are not written yet in neutral grey. `written` is (I,), of grid (h, w)."""
    px = pixels.shape[0] // grid[0]
    mask = written.reshape(grid).repeat(px, axis=0).repeat(px, axis=1)
    return np.where(mask[:, :, None], pixels, np.uint8(UNWRITTEN_GREY))
