"""A runner without weights, for tests of the engine and of everything above it. numpy only.

Its logits are noise keyed by everything a real model's depend on: both texts, the slot's own tokens so
far, the position. So its pictures obey the same contract, and a mix-up of slots or rows shows in them.
The public attributes after `num_slots` inject what goes wrong in life: delays, faults, NaN, unequal buckets.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.pull import CodeDistances
from dalle_server.engine.rng import MASK32, philox4x32
from dalle_server.engine.runners.base import (
    LOGPROBS,
    PULL,
    SEAMLESS,
    TOKENIZE,
    RunnerInfo,
    StepResult,
    StepRow,
    TextTokens,
    read_whole,
)
from dalle_server.engine.sampling import guide, log_probabilities, sample
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.families.janus import JanusConfig
from dalle_server.models.config import ModelConfig, VQGANConfig
from dalle_server.request import ImageKey

MAX_TEXT_LENGTH = 64


def fake_config(grid_side: int = 4, codebook_size: int = 64) -> ModelConfig:
    """A model of `grid_side`² tokens, 8 pixels each."""
    return ModelConfig(
        name="fake",
        transformer=DalleBartConfig(
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=1,
            decoder_attention_heads=1,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
            encoder_vocab_size=256,
            image_vocab_size=codebook_size,
            image_length=grid_side**2,
            max_text_length=MAX_TEXT_LENGTH,
            decoder_start_token_id=codebook_size,
            bos_token_id=codebook_size,
            eos_token_id=codebook_size,
            pad_token_id=codebook_size,
        ),
        vqgan=VQGANConfig(
            ch=8,
            ch_mult=(1, 1, 1, 1),
            num_res_blocks=1,
            attn_resolutions=(),
            z_channels=8,
            embed_dim=8,
            n_embed=codebook_size,
            resolution=8 * grid_side,
            num_groups=1,
        ),
    )


def fake_janus_config(grid_side: int = 24, codebook_size: int = 64) -> ModelConfig:
    """The other family's, 16 pixels a token; texts are the same."""
    made = fake_config(grid_side, codebook_size)
    sizes = JanusConfig(
        d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, ffn_dim=8, vocab_size=256, image_vocab_size=codebook_size,
        image_length=grid_side**2, max_text_length=MAX_TEXT_LENGTH, rms_norm_eps=1e-6, rope_theta=1e4,
    )  # fmt: skip
    vqgan = replace(made.vqgan, ch_mult=(1, 1, 1, 1, 1), resolution=16 * grid_side)
    return replace(made, transformer=sizes, vqgan=vqgan)


class FakeTokenizer:
    """One id per UTF-8 byte, between <s> 0 and </s> 2."""

    def encode(self, prompt: str) -> TextTokens:
        content = [byte if byte > 3 else 3 for byte in prompt.encode()][: MAX_TEXT_LENGTH - 2]
        ids = np.full(MAX_TEXT_LENGTH, 1, np.int32)
        ids[: len(content) + 2] = [0, *content, 2]
        return TextTokens(ids, len(content) + 2)

    def pair(self, prompt: str, negative_prompt: str) -> tuple[TextTokens, TextTokens]:
        return self.encode(prompt), self.encode(negative_prompt)


def colours(codebook_size: int) -> NDArray[np.int32]:
    """(C, 3): what each id stands for."""
    every = np.arange(codebook_size, dtype=np.int32)
    return np.stack([(every * step + 40) % 256 for step in (37, 91, 151)], axis=-1)


@dataclass(slots=True)
class FakeText:
    """Read a token at a time, if need be."""

    text: TextTokens
    num_read: int = 0

    @property
    def is_whole(self) -> bool:
        return self.num_read == self.text.length

    @property
    def nbytes(self) -> int:
        return 1000 * self.text.length

    @property
    def digest(self) -> int:
        assert self.is_whole
        return zlib.crc32(self.text.ids[: self.text.length].tobytes())


@dataclass(slots=True)
class _Slot:
    conditional: int  # digest of the text
    unconditional: int
    history: int = 0  # digest of the tokens written so far
    next_position: int = 0
    poisoned: bool = False  # a NaN once in the K/V cache spoils every later step


@dataclass(frozen=True, slots=True)
class _Ready:
    written: StepResult
    delay_s: float

    def result(self) -> StepResult:
        if self.delay_s:
            time.sleep(self.delay_s)
        return self.written


class FakeRunner:
    """Implements `Runner`. Raises AssertionError when the engine breaks the protocol (a wrong position, a bad slot)."""

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        step_s: float = 0.0,
        detokenize_s: float = 0.0,
        num_slots: int = 8,
        lookahead: int = 0,
        row_buckets: Sequence[int] | None = None,
    ):
        self.config = config or fake_config()
        self.info = RunnerInfo(
            "fake",
            "cpu",
            "no device",
            "fp32",
            "asked for by a test",
            {"numpy": np.__version__},
            features=(LOGPROBS, TOKENIZE, SEAMLESS, PULL),
        )
        self.num_slots = num_slots
        self.lookahead = lookahead
        self.row_buckets: tuple[int, ...] = tuple(row_buckets or sorted({min(2**i, num_slots) for i in range(8)}))
        self.step_s, self.detokenize_s = step_s, detokenize_s
        self.on_step: Callable[[Sequence[StepRow]], None] = lambda rows: None  # may raise or block
        self.on_encode: Callable[[Sequence[TextTokens]], None] = lambda texts: None
        self.on_read: Callable[[FakeText, int], None] = lambda text, num_tokens: None
        self.on_admit: Callable[[int], None] = lambda slot: None
        self.on_tokenize: Callable[[NDArray[np.uint8]], None] = lambda pixels: None
        self.on_detokenize: Callable[[NDArray[np.int32]], None] = lambda grids: None
        self.nan_at: dict[ImageKey, int] = {}  # the position from which an image's logits are NaN
        self.own_class: set[int] = set()  # buckets whose logits differ in the last bit
        self.num_steps = 0
        self.closed = False
        self._slots: dict[int, _Slot] = {}
        self._logits = np.zeros((0, self.config.picture.codebook_size), np.float32)
        self._distances = CodeDistances(colours(self.config.picture.codebook_size))
        self._stepping = threading.Lock()

    def open_text(self, text: TextTokens) -> FakeText:
        return FakeText(text)

    def read_text(self, encoded: FakeText, num_tokens: int) -> None:
        assert num_tokens > 0 and not encoded.is_whole
        self.on_read(encoded, num_tokens)
        if not encoded.num_read:
            self.on_encode([encoded.text])
        encoded.num_read = min(encoded.text.length, encoded.num_read + num_tokens)

    def encode(self, texts: Sequence[TextTokens]) -> list[FakeText]:
        return read_whole(self, texts)

    def admit(self, slot: int, conditional: FakeText, unconditional: FakeText) -> None:
        assert 0 <= slot < self.num_slots, slot
        self.on_admit(slot)
        self._slots[slot] = _Slot(conditional.digest, unconditional.digest)

    def step(self, rows: Sequence[StepRow]) -> _Ready:
        assert self._stepping.acquire(blocking=False), "two threads in step()"
        try:
            assert 0 < len(rows) <= self.row_buckets[-1] and len({row.slot for row in rows}) == len(rows)
            self.on_step(rows)
            self.num_steps += 1
            self._logits = self._forward(rows)
            self._pulled = self._distances.lowered(self._logits, rows)
            tokens = sample(self._pulled, rows)
            for row, token in zip(rows, tokens, strict=True):
                state = self._slots[row.slot]
                state.history = zlib.crc32(int(token).to_bytes(4, "little", signed=True), state.history)
                state.next_position += 1
            return _Ready(StepResult(tokens, self._logprobs(rows, tokens)), self.step_s)
        finally:
            self._stepping.release()

    def _logprobs(self, rows: Sequence[StepRow], tokens: NDArray[np.int32]) -> NDArray[np.float32] | None:
        if not any(row.wants for row in rows):
            return None
        told = [
            log_probabilities(conditional, guided, row.sampling, int(token)) if LOGPROBS in row.wants else [np.nan] * 2
            for conditional, guided, row, token in zip(self._conditional, self._pulled, rows, tokens, strict=True)
        ]
        return np.array(told, np.float32)

    def _forward(self, rows: Sequence[StepRow]) -> NDArray[np.float32]:
        states = [self._slots[row.slot] for row in rows]
        for row, state in zip(rows, states, strict=True):
            assert row.position == state.next_position, (
                f"slot {row.slot}: {row.position} after {state.next_position - 1}"
            )
            state.poisoned |= row.position >= self.nan_at.get(row.key, row.position + 1)
        ids = np.arange(self.config.picture.codebook_size, dtype=np.int64)[None, :]
        position = np.array([[row.position] for row in rows], np.int64)
        history = np.array([[state.history] for state in states], np.int64)
        conditional, unconditional = (
            philox4x32((ids, position, history, np.zeros_like(history)), (digests, np.zeros_like(digests)))[0]
            for digests in (
                np.array([[state.conditional] for state in states], np.int64),
                np.array([[state.unconditional] for state in states], np.int64),
            )
        )
        scale = np.array([[row.sampling.condition_scale] for row in rows], np.float32)
        self._conditional = (conditional / MASK32 * 4).astype(np.float32)
        logits = guide(self._conditional, (unconditional / MASK32 * 4).astype(np.float32), scale)
        if self._bucket(len(rows)) in self.own_class:
            logits = np.nextafter(logits, np.float32(np.inf))
        logits[[state.poisoned for state in states]] = np.nan
        return logits

    def _bucket(self, num_images: int) -> int:
        return next(bucket for bucket in self.row_buckets if bucket >= num_images)

    def guided_logits(self) -> NDArray[np.float32]:
        return self._logits

    def drop_buckets_below(self, num_images: int) -> None:
        self.row_buckets = tuple(bucket for bucket in self.row_buckets if bucket >= num_images)

    def detokenize(self, grids: NDArray[np.int32], *, wraps: bool = False) -> NDArray[np.uint8]:
        """One colour per id, one square per token, a soft shade inside each; `wraps`: a flat one."""
        self.on_detokenize(grids)
        if self.detokenize_s:
            time.sleep(self.detokenize_s)
        side, px = self.config.picture.grid_width, self.config.vqgan.scale_factor
        assert grids.min() >= 0 and grids.max() < self.config.picture.codebook_size, "not a codebook id"
        painted = colours(self.config.picture.codebook_size)[grids].reshape(-1, side, side, 3)
        squares = painted.repeat(px, axis=1).repeat(px, axis=2)
        shade = np.linspace(1.0 if wraps else 0.8, 1.0, px)
        weight = np.tile(np.minimum.outer(shade, shade), (side, side))[None, :, :, None]
        pixels: NDArray[np.uint8] = (squares * weight).astype(np.uint8)
        return pixels

    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The inverse of `detokenize`: a square's last pixel has its whole colour."""
        self.on_tokenize(pixels)
        px = self.config.vqgan.scale_factor
        known = colours(self.config.picture.codebook_size)
        found = pixels[:, px - 1 :: px, px - 1 :: px].reshape(len(pixels), -1, 1, 3).astype(np.int32)
        ids: NDArray[np.int32] = np.abs(found - known).sum(-1).argmin(-1).astype(np.int32)
        return ids

    def close(self) -> None:
        self.closed = True
