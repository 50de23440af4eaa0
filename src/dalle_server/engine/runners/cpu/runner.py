"""The CPU runner: texts, step and pixels put together (load.py). Knows nothing of C."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.pull import CodeDistances
from dalle_server.engine.runners.base import (
    LOGPROBS,
    EncodedText,
    Ready,
    RunnerInfo,
    StepResult,
    StepRow,
    TextTokens,
    read_whole,
)
from dalle_server.engine.runners.cpu.parts import Pixels, Step, StepBatch, Texts
from dalle_server.engine.sampling import Draw, gumbel_max, log_probabilities, sample
from dalle_server.models.config import ModelConfig


class CpuRunner:
    """Implements `Runner`. A step is done when `step` returns.

    The parts share the cores, so one of them computes at a time. `draw` picks among what the filters leave. Without
    `distances` no row may ask for a pull.
    """

    lookahead = 0

    def __init__(
        self,
        config: ModelConfig,
        info: RunnerInfo,
        num_slots: int,
        texts: Texts,
        step: Step,
        pixels: Pixels,
        draw: Draw = gumbel_max,
        distances: CodeDistances | None = None,
    ):
        self.config = config
        self.info = info
        self.num_slots = num_slots
        self.row_buckets = step.row_buckets
        self._texts, self._step, self._pixels, self._draw = texts, step, pixels, draw
        self._distances = distances
        self._last_tokens = np.zeros(num_slots + 1, np.int32)
        self._guided = np.zeros((0, config.picture.codebook_size), np.float32)
        self._cores = threading.Lock()

    def open_text(self, text: TextTokens) -> Any:
        return self._texts.open(text)

    def read_text(self, encoded: EncodedText, num_tokens: int) -> None:
        with self._cores:
            self._texts.read(encoded, num_tokens)

    def encode(self, texts: Sequence[TextTokens]) -> list[Any]:
        return read_whole(self, texts)

    def admit(self, slot: int, conditional: Any, unconditional: Any) -> None:
        self._step.admit(slot, conditional, unconditional)

    def step(self, rows: Sequence[StepRow]) -> Ready:
        wanted = [place for place, row in enumerate(rows) if LOGPROBS in row.wants]
        guided = [place for place in wanted if rows[place].sampling.condition_scale != 1]
        # First, since it reads the same last tokens; the step proper then writes the same keys and values once more.
        without = self._logits([rows[place] for place in guided], guidance=1.0) if guided else ()
        self._guided = self._logits(rows)
        pulled = self._guided if self._distances is None else self._distances.lowered(self._guided, rows)
        tokens = sample(pulled, rows, self._draw)
        logprobs = self._logprobs(rows, wanted, dict(zip(guided, without, strict=True)), pulled, tokens)
        # Last: a step that finds no memory must not have changed a slot.
        self._last_tokens[[row.slot for row in rows]] = tokens
        return Ready(StepResult(tokens, logprobs))

    def _logprobs(
        self,
        rows: Sequence[StepRow],
        wanted: Sequence[int],
        conditional: Mapping[int, NDArray[np.float32]],
        pulled: NDArray[np.float32],
        tokens: NDArray[np.int32],
    ) -> NDArray[np.float32] | None:
        """As in StepResult. `conditional`: by place, of guided rows; another's only logits are conditional."""
        if not wanted:
            return None
        logprobs = np.full((len(rows), 2), np.nan, np.float32)
        for place in wanted:
            logits = conditional.get(place, self._guided[place])
            logprobs[place] = log_probabilities(logits, pulled[place], rows[place].sampling, int(tokens[place]))
        return logprobs

    def _logits(self, rows: Sequence[StepRow], guidance: float | None = None) -> NDArray[np.float32]:
        """(N, C), at each row's own guidance or at the one that is given."""
        padding = next((bucket for bucket in self.row_buckets if bucket >= len(rows)), len(rows)) - len(rows)
        slots = np.array([row.slot for row in rows] + [self.num_slots] * padding, np.int32)
        positions = np.array([row.position for row in rows] + [0] * padding, np.int32)
        scales = np.array([row.sampling.condition_scale for row in rows] + [1.0] * padding, np.float32)
        if guidance is not None:
            scales[:] = guidance
        with self._cores:
            return self._step.logits(StepBatch(slots, positions, self._last_tokens[slots], scales))[: len(rows)]

    def guided_logits(self) -> NDArray[np.float32]:
        return self._guided

    def drop_buckets_below(self, num_images: int) -> None:
        self.row_buckets = tuple(bucket for bucket in self.row_buckets if bucket >= num_images)

    def detokenize(self, grids: NDArray[np.int32], *, wraps: bool = False) -> NDArray[np.uint8]:
        return np.stack([self._paint(grid, wraps) for grid in grids])

    def _paint(self, grid: NDArray[np.int32], wraps: bool) -> NDArray[np.uint8]:
        with self._cores:
            return self._pixels.decode(grid, wraps=wraps)

    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
        return np.stack([self._read(picture) for picture in pixels])

    def _read(self, picture: NDArray[np.uint8]) -> NDArray[np.int32]:
        with self._cores:
            return self._pixels.encode(picture)

    def close(self) -> None:
        # The engine holds this object until there is another, and two models may be more than fits.
        self._distances = None
        for name in ("_texts", "_step", "_pixels"):
            part = vars(self).pop(name, None)
            if part is not None:
                part.close()
