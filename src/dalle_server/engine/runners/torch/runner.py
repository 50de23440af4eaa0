"""The torch runner: the reference on a CPU, the fast path on a GPU.

CPU and Apple: eager, logits go to numpy and engine/sampling.py draws. CUDA: fused layers, sampling on the
device, the whole step one CUDA graph per row bucket, and a step launched before the last one is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine import sampling
from dalle_server.engine.pull import CodeDistances
from dalle_server.engine.runners.base import (
    LOGPROBS,
    NO_ENCODER,
    PULL,
    SEAMLESS,
    TOKENIZE,
    PendingStep,
    Ready,
    StepResult,
    StepRow,
    TextTokens,
    read_whole,
)
from dalle_server.engine.runners.torch.device import checked_device, checked_dtype, describe, memory_errors
from dalle_server.engine.runners.torch.fused import fuse
from dalle_server.engine.runners.torch.graphs import CudaGraphs
from dalle_server.engine.runners.torch.inputs import StepInputs
from dalle_server.engine.runners.torch.sampling import Pull, log_probabilities
from dalle_server.engine.runners.torch.step import MIN_ROWS, SlotStates, window_length, windows_agree
from dalle_server.engine.runners.torch.texts import TorchText
from dalle_server.engine.runners.torch.weights import (
    load_detokenizer,
    load_tokenizer,
    load_transformer,
    pixel_dtype,
)
from dalle_server.errors import CheckpointError, NotSupported
from dalle_server.models.broken import NO_PIXELS
from dalle_server.models.vqgan import VQGAN, to_pixels


class _Advance(Protocol):
    def advance(self, inputs: StepInputs) -> tuple[Tensor, Tensor]: ...


class TorchRunner:
    """Implements `Runner`. Raises ConfigError for a device that torch does not see or a dtype it cannot use there.

    `on_device` chooses the GPU form of the step (fused, sampled on the device); by default where CUDA is.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        dtype: str = "fp32",
        num_slots: int = 8,
        num_threads: int | None = None,
        reason: str = "asked for",
        on_device: bool | None = None,
    ):
        self._device = checked_device(device)
        self._on_device = self._device.type == "cuda" if on_device is None else on_device
        if num_threads:
            torch.set_num_threads(num_threads)
        self.config = checkpoint.config
        self.num_slots = num_slots
        self._checkpoint = checkpoint
        features = (LOGPROBS, SEAMLESS, PULL, *((TOKENIZE,) if checkpoint.has_encoder else ()))
        self.info = replace(describe(self._device, dtype, reason), features=features)
        self._tokenizer: VQGAN | None = None
        self._distances = CodeDistances(checkpoint.codebook)
        self.lookahead = 1 if self._device.type == "cuda" else 0
        # A CPU's fp32 products want MIN_ROWS rows, two of which are an image's; the rest stands in empty slots.
        smallest = MIN_ROWS // 2 if self._device.type == "cpu" and dtype == "fp32" else 1
        self.row_buckets = _buckets(smallest, num_slots)
        self._load(checkpoint, checked_dtype(dtype))
        self._next_positions = np.zeros(self.row_buckets[-1], np.int64)
        self._last_logits: tuple[Tensor, list[int]] | None = None

    @memory_errors()
    @torch.inference_mode()
    def _load(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        model = load_transformer(checkpoint, self._device, dtype)
        if self._on_device:
            fuse(model)
        self._vqgan = load_detokenizer(checkpoint, self._device, pixel_dtype(self._device, dtype))
        pull = Pull(self._distances, self._device) if self._on_device else None
        self._states = SlotStates(model, self.row_buckets[-1], self.config.picture.codebook_size, pull)
        self._windows_agree = not self._on_device and windows_agree(model, self._states.cache)
        self._step: _Advance = self._states
        self._detokenize_stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # torch's default would compute fp32 pixels with 10-bit mantissas
            with torch.cuda.device(self._device):
                self._step = CudaGraphs(self._states, self.row_buckets)
            self._detokenize_stream = torch.cuda.Stream(self._device)
            torch.cuda.synchronize(self._device)  # weights are there before another stream reads them

    @memory_errors()
    def open_text(self, text: TextTokens) -> TorchText:
        ids = text.ids[: text.length - self._states.model.fed_by_step]
        return TorchText(torch.from_numpy(ids.astype(np.int64)).to(self._device))

    @memory_errors()
    @torch.inference_mode()
    def read_text(self, encoded: TorchText, num_tokens: int) -> None:
        """A piece, whatever its size."""
        encoded.read_piece(self._states.model)

    def encode(self, texts: Sequence[TextTokens]) -> list[Any]:
        return read_whole(self, texts)

    @memory_errors()
    @torch.inference_mode()
    def admit(self, slot: int, conditional: TorchText, unconditional: TorchText) -> None:
        self._states.admit(slot, conditional.states, unconditional.states)
        self._next_positions[slot] = 0

    @memory_errors()
    @torch.inference_mode()
    def step(self, rows: Sequence[StepRow]) -> PendingStep:
        slots = [row.slot for row in rows]
        bucket = next(bucket for bucket in self.row_buckets if bucket > max(slots))
        positions = self._next_positions[:bucket].copy()
        positions[slots] = [row.position for row in rows]
        launch = self._launch_on_device if self._on_device else self._launch_sampled_by_host
        pending = launch(rows, StepInputs.pack(rows, positions))
        last_position = self.config.picture.num_tokens - 1
        self._next_positions[slots] = np.minimum(positions[slots] + 1, last_position)
        return pending

    def _launch_sampled_by_host(self, rows: Sequence[StepRow], inputs: StepInputs) -> PendingStep:
        slots = [row.slot for row in rows]
        length = None
        if self._windows_agree:
            length = window_length(inputs.positions[slots].numpy(), self.config.picture.num_tokens)
        inputs = inputs.to(self._device)
        wanted = any(LOGPROBS in row.wants for row in rows)
        conditional = self._states.logits(inputs.at_guidance_1(), length)[slots].cpu().numpy() if wanted else None
        logits = self._states.logits(inputs, length)
        self._last_logits = logits, slots
        guided = self._distances.lowered(logits[slots].cpu().numpy(), rows)
        tokens = sampling.sample(guided, rows)
        all_tokens = torch.zeros(len(logits), dtype=torch.long)
        all_tokens[slots] = torch.from_numpy(tokens.astype(np.int64))
        told = None
        if conditional is not None:
            each = zip(conditional, guided, rows, tokens, strict=True)
            told = [sampling.log_probabilities(c, g, row.sampling, int(token)) for c, g, row, token in each]
        written = StepResult(tokens, None if told is None else _masked(np.array(told, np.float32), rows))
        # Last: a step that finds no memory must not have changed a slot.
        self._states.remember(all_tokens.to(self._device), inputs)
        return Ready(written)

    def _launch_on_device(self, rows: Sequence[StepRow], inputs: StepInputs) -> PendingStep:
        if any(LOGPROBS in row.wants for row in rows):
            with self._states.unchanged_by_errors():
                return self._sent(self._tokens_and_logprobs(rows, inputs), rows)
        # Nothing behind `advance`, which remembers the tokens, asks the device for memory here.
        tokens, logits = self._step.advance(inputs)
        self._last_logits = logits, [row.slot for row in rows]
        return self._sent([tokens], rows)

    def _tokens_and_logprobs(self, rows: Sequence[StepRow], inputs: StepInputs) -> list[Tensor]:
        # Copied: the step proper overwrites the answers of the one before.
        conditional = self._step.advance(inputs.at_guidance_1())[1].clone()
        tokens, logits = self._step.advance(inputs)
        self._last_logits = logits, [row.slot for row in rows]
        inputs = inputs.to(self._device)
        return [tokens, log_probabilities(conditional, self._states.lowered(logits, inputs), tokens, inputs)]

    def _sent(self, answers: Sequence[Tensor], rows: Sequence[StepRow]) -> PendingStep:
        """On its way to the host."""
        if self._device.type != "cuda":
            return Ready(_result([answer.cpu() for answer in answers], rows))
        hosts = [torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True) for answer in answers]
        for host, answer in zip(hosts, answers, strict=True):
            host.copy_(answer, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self._device))
        return _Copying(hosts, rows, copied)

    def guided_logits(self) -> NDArray[np.float32]:
        if self._last_logits is None:
            raise RuntimeError("guided_logits: no step was launched yet")
        logits, slots = self._last_logits
        answer: NDArray[np.float32] = logits[slots].cpu().numpy()
        return answer

    def drop_buckets_below(self, num_images: int) -> None:
        self.row_buckets = tuple(bucket for bucket in self.row_buckets if bucket >= num_images)

    @memory_errors()
    @torch.inference_mode()
    def detokenize(self, grids: NDArray[np.int32], *, wraps: bool = False) -> NDArray[np.uint8]:
        """One picture at a time: its pixels then depend on nothing else, and a batch would hardly be faster. The device
        is waited for at the end.

        Raises CheckpointError for pixels that are not finite.
        """
        with self._on_detokenize_stream():
            ids = torch.from_numpy(grids.astype(np.int64)).to(self._device)
            pixels, are_finite = zip(*(self._paint(grid, wraps) for grid in ids), strict=True)
            if not torch.stack(are_finite).all():
                raise CheckpointError(NO_PIXELS)
            return torch.cat(pixels).cpu().numpy()

    def _paint(self, grid: Tensor, wraps: bool) -> tuple[Tensor, Tensor]:
        """(I,) → (1, H, W, 3) bytes, and whether they come from numbers."""
        image = self._vqgan.decode(grid[None], wraps=wraps)
        return to_pixels(image), image.isfinite().all()

    @memory_errors()
    @torch.inference_mode()
    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
        """One picture at a time, as in `detokenize`. The encoder is loaded with the first: most servers read none.

        Raises CheckpointError for distances from the codes that are not finite.
        """
        if self._tokenizer is None:
            if TOKENIZE not in self.info.features:
                raise NotSupported(NO_ENCODER)
            self._tokenizer = load_tokenizer(self._checkpoint, self._device)
        with self._on_detokenize_stream():
            images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 255
            num_codes = self.config.picture.codebook_size
            ids = [self._tokenizer.encode(image[None], num_codes).cpu().numpy() for image in images]
        return np.concatenate(ids).astype(np.int32)

    def _on_detokenize_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._detokenize_stream) if self._detokenize_stream else nullcontext()

    def close(self) -> None:
        for name in ("_last_logits", "_step", "_states", "_vqgan", "_tokenizer", "_checkpoint", "_distances"):
            vars(self).pop(name, None)
        if self._device.type == "cuda":
            with suppress(RuntimeError):  # after an illegal access, this fails like everything else
                torch.cuda.empty_cache()  # the next runner counts its slots by what the driver calls free


@dataclass(frozen=True, slots=True)
class _Copying:
    """Answers for all slots, on their way to the host."""

    hosts: Sequence[Tensor]
    rows: Sequence[StepRow]
    copied: torch.cuda.Event

    def result(self) -> StepResult:
        self.copied.synchronize()
        return _result(self.hosts, self.rows)


def _result(answers: Sequence[Tensor], rows: Sequence[StepRow]) -> StepResult:
    """Tokens and, perhaps, logprobs of all slots → those of the rows."""
    slots = [row.slot for row in rows]
    tokens, *logprobs = (answer.numpy()[slots] for answer in answers)
    return StepResult(tokens.astype(np.int32), _masked(logprobs[0], rows) if logprobs else None)


def _masked(logprobs: NDArray[np.float32], rows: Sequence[StepRow]) -> NDArray[np.float32]:
    """Of the rows that wanted them."""
    logprobs[[LOGPROBS not in row.wants for row in rows]] = np.nan
    return logprobs


def _buckets(smallest: int, num_slots: int) -> tuple[int, ...]:
    """Powers of two from `smallest`, and the number of slots: (2, 4, 6) for six slots."""
    sizes = {size for size in (2**i for i in range(num_slots.bit_length())) if smallest <= size < num_slots}
    return tuple(sorted({*sizes, max(smallest, num_slots)}))
