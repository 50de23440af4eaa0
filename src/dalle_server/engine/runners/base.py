"""The protocol between the engine and what does the arithmetic. No torch and no C here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dalle_server.models.config import ModelConfig
from dalle_server.request import ImageKey, SamplingParams

NAN_TOKEN = -1  # a step's answer for an image whose logits were not finite

# What a runner may do beyond drawing: in RunnerInfo.features, and asked for in StepRow.wants.
TOKENIZE = "tokenize"  # pixels to tokens: needs a checkpoint whose VQGAN has its encoder
LOGPROBS = "logprobs"  # how likely each token was
SEAMLESS = "seamless"  # pixels whose opposite edges meet
PULL = "pull"  # tokens drawn towards given ones: what `strength` between 0 and 1 asks for

NO_ENCODER = (
    "this checkpoint's VQGAN has no encoder, so it cannot read pictures; serve weights that were converted from the"
    " published VQGAN (docs/checkpoints.md), not from min-dalle's"
)


@dataclass(frozen=True, slots=True)
class TextTokens:
    """One tokenised text: `ids` (T,) int32, padded at the end; the first `length` ids are real."""

    ids: NDArray[np.int32]
    length: int


class EncodedText(Protocol):
    """A text in a runner's own form, what `admit` takes, while it is read and afterwards."""

    @property
    def num_read(self) -> int:
        """Tokens of it that have been read."""
        ...

    @property
    def is_whole(self) -> bool: ...

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        ...


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What runs, where, and why: shown in the log, by /v1/info and by the playground."""

    runner: str  # "compiled" | "torch" | "fake"
    device: str  # "cpu" | "cuda:0" | "mps"
    device_name: str
    dtype: str  # "fp32" | "bf16" | "fp16" | "int8"
    reason: str
    versions: dict[str, str]
    num_threads: int | None = None  # that compute; None: what the library takes by itself
    build: str | None = None  # of the compiled code, by instruction set; None where it does not run
    features: tuple[str, ...] = ()  # of TOKENIZE, LOGPROBS, SEAMLESS, PULL


@dataclass(frozen=True, slots=True)
class StepRow:
    """One image's part of a step: write the token at `position` of `slot`'s grid.

    The runner remembers each slot's last token, so that a GPU can start step k+1 before the host has
    read step k. `forced` (an id, or -1) replaces the sampled token.
    """

    slot: int
    position: int  # 0…I-1: the position written by this step
    key: ImageKey
    sampling: SamplingParams  # resolved
    forced: int = -1
    wants: frozenset[str] = frozenset()  # LOGPROBS: costs this row a second pass; free for the others
    near: int = -1  # the code that this token is drawn towards, where `pull` > 0 says how strongly (engine/pull.py)
    pull: float = 0.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step wrote, in the order of its rows."""

    tokens: NDArray[np.int32]  # (N,) ids; NAN_TOKEN where the logits were not finite
    # (N, 2) natural logarithms of how likely each token was, forced ones included: over the whole codebook at
    # temperature 1 and guidance 1, and as sampled, under guidance, pull, temperature and filters (−inf: filtered out).
    # NaN for rows that did not want them; None when no row did.
    logprobs: NDArray[np.float32] | None = None


class PendingStep(Protocol):
    """A launched step."""

    def result(self) -> StepResult:
        """May block."""
        ...


@dataclass(frozen=True, slots=True)
class Ready:
    """A PendingStep that is over."""

    written: StepResult

    def result(self) -> StepResult:
        return self.written


class Runner(Protocol):
    """Two rows a slot: one conditional, one unconditional. Called by the engine's thread only, except `detokenize` and
    `tokenize`: each may be called by one other thread at the same time."""

    config: ModelConfig
    info: RunnerInfo
    num_slots: int
    lookahead: int  # steps that may be launched before the first is read: 0 on CPU, 1 on CUDA
    row_buckets: tuple[int, ...]  # batch sizes (in images) that a step is padded to; ascending

    def open_text(self, text: TextTokens) -> Any:
        """An EncodedText of which nothing is read yet. Raises MemoryError."""
        ...

    def read_text(self, encoded: Any, num_tokens: int) -> None:
        """Read on in it: about so many tokens, or all of them where a text cannot be read in pieces. Its bits depend
        neither on the pieces nor on any other text. Raises MemoryError; nothing of the text is read then.
        """
        ...

    def encode(self, texts: Sequence[TextTokens]) -> list[Any]:
        """Each text, read to its end. Raises MemoryError."""
        ...

    def admit(self, slot: int, conditional: Any, unconditional: Any) -> None:
        """Prepare a slot for a new image: zeroed self-attention cache, cross K/V of two whole EncodedTexts.

        Comes after every launched step, also of one that is not read yet. Raises MemoryError.
        """
        ...

    def step(self, rows: Sequence[StepRow]) -> PendingStep:
        """Launch one token for each row: embed, decode, guide, cut to the codebook, pull, filter, sample.

        Raises MemoryError (also for an accelerator's own out-of-memory error) before any slot has changed:
        the engine then tries again with fewer rows.
        """
        ...

    def guided_logits(self) -> NDArray[np.float32]:
        """(N, C) guided logits of the last launched step, before pull and filters, in the order of its rows.

        For the start-up self-test and for tests: sampled tokens would hide a difference in the last bit.
        """
        ...

    def drop_buckets_below(self, num_images: int) -> None:
        """Pad every step to at least this bucket from now on: the self-test found smaller ones to differ in bits."""
        ...

    def detokenize(self, grids: NDArray[np.int32], *, wraps: bool = False) -> NDArray[np.uint8]:
        """(N, I) ids → (N, height, width, 3) pixels, clipped and truncated as the reference does.

        `wraps`: a grid's neighbours beyond an edge are those at the opposite one (SEAMLESS), instead of nothing.
        """
        ...

    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
        """(N, height, width, 3) pixels → (N, I) ids, the codebook's nearest. Raises NotSupported without an encoder."""
        ...

    def close(self) -> None:
        """Let go of weights and caches, though someone may still hold this object. A second call does nothing."""
        ...


def read_whole(runner: Runner, texts: Sequence[TextTokens]) -> list[Any]:
    """Each text, opened and read to its end: what a runner's `encode` does."""
    encoded = [runner.open_text(text) for text in texts]
    for one, text in zip(encoded, texts, strict=True):
        while not one.is_whole:
            runner.read_text(one, text.length)
    return encoded
