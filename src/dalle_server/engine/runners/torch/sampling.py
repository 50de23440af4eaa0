"""engine/sampling.py and pull.py in torch operations without a host round trip, so that a CUDA graph can hold them.

Same order, same ties, same noise. What may differ from numpy is the last bit of a float64 logarithm: it decides only
between candidates that are equal to about 1e-15.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle_server.engine.pull import CodeDistances
from dalle_server.engine.rng import MASK32, philox4x32
from dalle_server.engine.runners.base import NAN_TOKEN
from dalle_server.engine.runners.torch.inputs import NARROW, StepInputs
from dalle_server.engine.sampling import WEIGHT_ONE, exponential


class Pull:
    """`CodeDistances.lowered` over all slots, with the same bits: distances are sums of whole numbers, which no order
    of adding changes, as long as products of float32 are computed in float32 (no TF32, as torch has it).
    """

    def __init__(self, distances: CodeDistances, device: torch.device):
        self._codes, self._squares = (torch.from_numpy(x).to(device) for x in (distances.codes, distances.squares))
        self._unit = float(distances.unit)

    def lowered(self, logits: Tensor, inputs: StepInputs) -> Tensor:
        """(B, C) guided logits; those of a slot that nothing draws stay what they are."""
        near = inputs.near
        distance = self._squares[near][:, None] + self._squares - 2 * (self._codes[near] @ self._codes.T)
        return logits - (inputs.pull * self._unit)[:, None] * distance


def sample(logits: Tensor, inputs: StepInputs) -> Tensor:
    """(B, C) guided logits → (B,) int64 ids: the forced one, the drawn one, or NAN_TOKEN where not all are finite."""
    most = NARROW if inputs.is_narrow else None
    values, ids, kept = filter_logits(logits, inputs.temperature, inputs.top_k, inputs.top_p, most)
    scores = values.double() + gumbel(ids, inputs.positions, inputs.image_indices, inputs.seeds)
    best = scores.masked_fill(~kept, -torch.inf).argmax(-1, keepdim=True)
    drawn = ids.gather(1, best).squeeze(1)
    tokens = torch.where(inputs.forced >= 0, inputs.forced, drawn)
    return torch.where(logits.isfinite().all(-1), tokens, NAN_TOKEN)


def log_probabilities(conditional: Tensor, guided: Tensor, tokens: Tensor, inputs: StepInputs) -> Tensor:
    """(B, C) logits at guidance 1 and guided, (B,) tokens → (B, 2) float32: see StepResult.logprobs."""
    chosen = tokens.clamp(min=0)[:, None]
    whole = conditional.double().log_softmax(-1).gather(1, chosen)
    values, ids, kept = filter_logits(guided, inputs.temperature, inputs.top_k, inputs.top_p)
    sampled = values.double().masked_fill(~kept, -torch.inf).log_softmax(-1)
    sampled = sampled.masked_fill(ids != chosen, 0).sum(-1, keepdim=True)
    both = torch.cat([whole, sampled], 1)
    finite = conditional.isfinite().all(-1) & guided.isfinite().all(-1)
    return both.masked_fill(~finite[:, None], torch.nan).float()


def filter_logits(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C) logits → scaled logits in descending order, their ids, and which of them may be drawn.

    temperature, top_k and top_p are (B,); top_k 0 and top_p 1 keep everything. With `most` only so many of each row
    are looked at: the same answer, where every top_k lies within 1…most.
    """
    scaled = logits / temperature[:, None]
    if most is None or most >= scaled.shape[1]:
        # Stable: among equal logits the lowest id comes first, as the reference has it.
        values, ids = scaled.sort(dim=-1, descending=True, stable=True)
    else:
        ids = _best(scaled, most)
        values = scaled.gather(1, ids)
    rank = torch.arange(values.shape[1], device=values.device)
    kept = (rank < top_k[:, None]) | (top_k[:, None] <= 0)
    weights = (exponential(values.double() - values[:, :1].double()) * WEIGHT_ONE).long() * kept
    before = weights.cumsum(-1) - weights
    nucleus = (before < top_p[:, None].double() * weights.sum(-1, keepdim=True)) | (top_p[:, None] >= 1)
    return values, ids, kept & nucleus


def _best(values: Tensor, most: int) -> Tensor:
    """(B, C) float32 → (B, most) ids in the order of a stable descending sort. topk alone would break ties as it likes:
    value and id are put into one whole number, of which no two are equal.
    """
    bits = (values + 0.0).view(torch.int32)  # −0 is 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # whole numbers that are ordered as the floats are
    size = values.shape[1]
    places = torch.arange(size - 1, -1, -1, device=values.device)
    best = (ordered.long() * size + places).topk(most, dim=-1).values
    return size - 1 - best % size


def gumbel(token_ids: Tensor, steps: Tensor, image_indices: Tensor, seeds: Tensor) -> Tensor:
    """Standard Gumbel noise (B, C) in float64 for token ids (B, C); the rest is (B,). See engine/rng.py."""
    steps, image_indices, seeds = steps[:, None], image_indices[:, None], seeds[:, None]
    counter = (token_ids, steps, image_indices & MASK32, torch.zeros_like(steps))
    word: Tensor = philox4x32(counter, (seeds & MASK32, (seeds >> 32) & MASK32))[0]
    return -(-((word.double() + 0.5) * 2.0**-32).log()).log()
