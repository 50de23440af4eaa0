"""One decoding step over slots: embed, decode, guide, cut to the codebook, sample, remember the tokens.

Slot s owns cache rows 2s (conditional) and 2s + 1 (unconditional); a step runs slots 0…B−1. Everything is
tensors of fixed shapes and addresses, so `advance` runs eagerly on any device and inside a CUDA graph alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dalle_server.engine.runners.torch.inputs import StepInputs
from dalle_server.engine.runners.torch.sampling import Pull, sample
from dalle_server.models.config import WINDOW_BLOCK

# A matrix product of 1, 2–3, or ≥ 4 rows takes different paths on a CPU, with different last bits.
# With never fewer than 4 rows a picture does not depend on its company.
MIN_ROWS = 4


class SlotCache(Protocol):
    """What a family remembers of every slot: keys and values of two rows."""

    keys: Tensor  # (L, rows, H, positions, D)

    @property
    def num_positions(self) -> int:
        """Cached positions that a step may look at."""
        ...

    def admit(self, slot: int, conditional: Any, unconditional: Any) -> None:
        """Give the slot to a new image, with what `StepModel.read_text` made of two whole texts."""
        ...


class StepModel(Protocol):
    """A family's torch module, as the step asks for it.

    Guidance is mixed in front of the last linear layer, `lm_head`: u + s·(c − u) commutes with it, bias or none.
    """

    lm_head: nn.Linear

    @property
    def start_token_id(self) -> int:
        """What stands before position 0."""
        ...

    @property
    def text_piece(self) -> int | None:
        """Ids of a text that are read at once, always as many, since a row's bits may depend on how many there are;
        None: all.
        """
        ...

    @property
    def fed_by_step(self) -> int:
        """Ids at a text's end that are not read: the first step feeds them."""
        ...

    def read_text(self, ids: Tensor, before: Any = None) -> Any:
        """A piece (T,) of a text without padding, behind what `before` was made of → what a slot takes over of both. A
        family that puts the text in front of the picture runs its prefill here: pictures of one prompt then share it.
        """
        ...

    def step(self, ids: Tensor, positions: Tensor, cache: Any, length: int | None = None) -> Tensor:
        """The tokens before `positions` (R,) of the picture → (R, d), what lm_head reads. No position of the rows that
        count is beyond the first `length`, which are whole blocks of a window.
        """
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """A step's attention by itself: q (R, H, 1, D), k and v (R, H, P, D), mask (R, 1, 1, P)."""
        ...

    def new_cache(self, num_rows: int) -> SlotCache: ...


class SlotStates:
    """Caches and last tokens of all slots, and the step over them. Bits do not depend on other slots' contents."""

    def __init__(self, model: StepModel, num_slots: int, codebook_size: int, pull: Pull | None = None):
        """`pull` is for `advance`."""
        self.model, self._pull = model, pull
        self.cache = model.new_cache(2 * num_slots)
        head = model.lm_head
        self.device = head.weight.device
        # (C, d): ids beyond the codebook are never computed. Always fp32: guided logits are large, and
        # rounding them to bf16 would move the candidates against each other by a tenth.
        head.weight = nn.Parameter(head.weight[:codebook_size].float(), requires_grad=False)
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias[:codebook_size].float(), requires_grad=False)
        self.last_tokens = torch.zeros(num_slots, dtype=torch.long, device=self.device)
        self._tokens_before = torch.zeros_like(self.last_tokens)

    def admit(self, slot: int, conditional: Any, unconditional: Any) -> None:
        self.cache.admit(slot, conditional, unconditional)

    def logits(self, inputs: StepInputs, length: int | None = None) -> Tensor:
        """Guided logits (B, C) in float32 for the tokens at `inputs.positions`."""
        positions = inputs.positions
        previous = self.last_tokens[: len(positions)].clamp(min=0)  # NAN_TOKEN has no embedding
        ids = torch.where(positions == 0, self.model.start_token_id, previous).repeat_interleave(2)
        hidden = self.model.step(ids, positions.repeat_interleave(2), self.cache, length)  # (2B, d)
        conditional, unconditional = hidden.float().view(len(positions), 2, -1).unbind(1)
        # Guiding in front of the last layer guides the logits: u + s·(c − u).
        guided = unconditional + inputs.condition_scale[:, None] * (conditional - unconditional)
        padding = max(0, MIN_ROWS - len(guided))
        logits: Tensor = self.model.lm_head(F.pad(guided, (0, 0, 0, padding)))
        return logits[: len(guided)]

    def remember(self, tokens: Tensor, inputs: StepInputs) -> None:
        """Keep each active slot's token (B,) as the next step's input."""
        last = self.last_tokens[: len(tokens)]
        last.copy_(torch.where(inputs.active, tokens, last))

    @contextmanager
    def unchanged_by_errors(self) -> Iterator[None]:
        """When the block fails, no slot remembers a token of it: the step may be tried again. Its keys and values stay,
        since trying again writes the same. Copied in place: there may be no memory, and a CUDA graph knows the address.
        """
        self._tokens_before.copy_(self.last_tokens)
        try:
            yield
        except Exception:
            self.last_tokens.copy_(self._tokens_before)
            raise

    def lowered(self, logits: Tensor, inputs: StepInputs) -> Tensor:
        """Guided logits as they are sampled from, before the filters."""
        return logits if self._pull is None else self._pull.lowered(logits, inputs)

    def advance(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """A whole step on the device → tokens (B,) and guided logits (B, C)."""
        logits = self.logits(inputs)
        tokens = sample(self.lowered(logits, inputs), inputs)
        self.remember(tokens, inputs)
        return tokens, logits


def window_length(positions: NDArray[np.int64], image_length: int) -> int:
    """How many cached positions a step must look at, in whole blocks."""
    return min(image_length, (int(positions.max()) // WINDOW_BLOCK + 1) * WINDOW_BLOCK)


def windows_agree(model: StepModel, cache: SlotCache) -> bool:
    """Whether attention gives a row the same bits through every window that holds it, here and in these sizes.

    The farthest picture of a step decides on the window, and its company must not feel that. True of the released
    models' sizes on every machine seen so far; small heads go through another matrix product when the window is short.
    """
    generator = torch.Generator().manual_seed(0)
    shape, like = cache.keys[0, :MIN_ROWS].shape, cache.keys  # (B, H, I, D)
    query, keys, values = (torch.randn(shape, generator=generator).to(like.device, like.dtype) for _ in range(3))

    def attend(position: int, length: int) -> Tensor:
        seen = (torch.arange(length, device=like.device) <= position).expand(len(keys), 1, 1, length)
        return model.attend(query[:, :, :1], keys[:, :, :length], values[:, :, :length], seen)

    for position in range(WINDOW_BLOCK // 2, shape[2], WINDOW_BLOCK):
        whole = attend(position, shape[2])
        lengths = range(position + WINDOW_BLOCK // 2, shape[2], WINDOW_BLOCK)
        if not all(torch.equal(attend(position, length), whole) for length in lengths):
            return False
    return True
