"""One decoding step over slots: embed, decode, guide, cut to the codebook, sample, remember the tokens.

Slot s owns cache rows 2s (conditional) and 2s + 1 (unconditional); a step runs slots 0…B−1. Everything is
tensors of fixed shapes and addresses, so `advance` runs eagerly on any device and inside a CUDA graph alike.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dalle_server.engine.runners.torch.inputs import StepInputs
from dalle_server.engine.runners.torch.sampling import sample
from dalle_server.models.dalle_bart import DalleBart, DecoderCache, DecoderLayer

# A matrix product of 1, 2–3, or ≥ 4 rows takes different paths on a CPU, with different last bits.
# With never fewer than 4 rows a picture does not depend on its company.
MIN_ROWS = 4
WINDOW_BLOCK = 32  # positions; a sum over an odd number of them takes another path, with other last bits


class SlotStates:
    """Caches and last tokens of all slots, and the step over them. Bits do not depend on other slots' contents."""

    def __init__(self, model: DalleBart, num_slots: int, codebook_size: int):
        self.model = model
        self.cache = model.new_cache(2 * num_slots)
        weight = model.lm_head.weight
        self.device = weight.device
        # (C, d): ids beyond the codebook are never computed. Always fp32: guided logits are large, and
        # rounding them to bf16 would move the candidates against each other by a tenth.
        model.lm_head.weight = nn.Parameter(weight[:codebook_size].float(), requires_grad=False)
        self.last_tokens = torch.zeros(num_slots, dtype=torch.long, device=self.device)

    def admit(self, slot: int, cross_keys: Tensor, cross_values: Tensor, text_mask: Tensor) -> None:
        """Give the slot to a new image: cross (L, 2, H, T, D) and mask (2, T), conditional first."""
        rows = torch.tensor([2 * slot, 2 * slot + 1], device=self.device)
        self.cache.reset(rows, cross_keys, cross_values, text_mask)

    def logits(self, inputs: StepInputs, length: int | None = None) -> Tensor:
        """Guided logits (B, C) in float32 for the tokens at `inputs.positions`."""
        positions = inputs.positions
        start = self.model.config.decoder_start_token_id
        previous = self.last_tokens[: len(positions)].clamp(min=0)  # NAN_TOKEN has no embedding
        ids = torch.where(positions == 0, start, previous).repeat_interleave(2)
        hidden = self.model.decoder.step(ids, positions.repeat_interleave(2), self.cache, length)  # (2B, d)
        conditional, unconditional = hidden.float().view(len(positions), 2, -1).unbind(1)
        # lm_head has no bias, so that guiding in front of it guides the logits: u + s·(c − u).
        guided = unconditional + inputs.condition_scale[:, None] * (conditional - unconditional)
        padding = max(0, MIN_ROWS - len(guided))
        logits: Tensor = self.model.lm_head(F.pad(guided, (0, 0, 0, padding)))
        return logits[: len(guided)]

    def remember(self, tokens: Tensor, inputs: StepInputs) -> None:
        """Keep each active slot's token (B,) as the next step's input."""
        last = self.last_tokens[: len(tokens)]
        last.copy_(torch.where(inputs.active, tokens, last))

    def advance(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """A whole step on the device → tokens (B,) and guided logits (B, C)."""
        logits = self.logits(inputs)
        tokens = sample(logits, inputs)
        self.remember(tokens, inputs)
        return tokens, logits


def window_length(positions: NDArray[np.int64], image_length: int) -> int:
    """How many cached positions a step must look at, in whole blocks."""
    return min(image_length, (int(positions.max()) // WINDOW_BLOCK + 1) * WINDOW_BLOCK)


def windows_agree(model: DalleBart, cache: DecoderCache) -> bool:
    """Whether attention gives a row the same bits through every window that holds it, here and in these sizes.

    The farthest picture of a step decides on the window, and its company must not feel that. True of the released
    models' sizes on every machine seen so far; small heads go through another matrix product when the window is short.
    """
    attention = cast(DecoderLayer, model.decoder.layers[0]).self_attn
    generator = torch.Generator().manual_seed(0)
    shape, like = cache.keys[0, :MIN_ROWS].shape, cache.keys  # (B, H, I, D)
    query, keys, values = (torch.randn(shape, generator=generator).to(like.device, like.dtype) for _ in range(3))

    def attend(position: int, length: int) -> Tensor:
        seen = (torch.arange(length, device=like.device) <= position).expand(len(keys), 1, 1, length)
        return attention.attend(query[:, :, :1], keys[:, :, :length], values[:, :, :length], seen)

    for position in range(WINDOW_BLOCK // 2, shape[2], WINDOW_BLOCK):
        whole = attend(position, shape[2])
        lengths = range(position + WINDOW_BLOCK // 2, shape[2], WINDOW_BLOCK)
        if not all(torch.equal(attend(position, length), whole) for length in lengths):
            return False
    return True
