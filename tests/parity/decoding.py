"""Driving a runner through whole pictures, the way the engine does, to compare what it says with the goldens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dalle_server.engine.runners.base import Runner, StepRow, TextTokens
from dalle_server.request import ImageKey, SamplingParams


@dataclass(frozen=True)
class Picture:
    """One image to decode: both texts, how tokens are drawn, and ids that are forced (I,), -1 where free."""

    conditional: TextTokens
    unconditional: TextTokens
    sampling: SamplingParams
    key: ImageKey = field(default_factory=lambda: ImageKey(0))
    forced: np.ndarray | None = None


def texts(golden: dict[str, np.ndarray], branch: str = "") -> list[TextTokens]:
    """The golden's texts; min-dalle's goldens have no mask: everything but padding (1) counts."""
    ids = golden[f"input_ids{branch}"]
    mask = golden.get(f"attention_mask{branch}", ids != 1)
    return [TextTokens(row.astype(np.int32), int(length)) for row, length in zip(ids, mask.sum(1), strict=True)]


def pictures(golden: dict[str, np.ndarray], sampling: SamplingParams) -> list[Picture]:
    pairs = zip(texts(golden), texts(golden, "_uncond"), strict=True)
    return [Picture(conditional, unconditional, sampling) for conditional, unconditional in pairs]


def admit(runner: Runner, slot: int, picture: Picture) -> None:
    runner.admit(slot, *runner.encode([picture.conditional, picture.unconditional]))


def row(slot: int, position: int, picture: Picture) -> StepRow:
    forced = -1 if picture.forced is None else int(picture.forced[position])
    return StepRow(slot, position, picture.key, picture.sampling, forced)


def decode(runner: Runner, batch: Sequence[Picture]) -> tuple[np.ndarray, np.ndarray]:
    """All pictures side by side in slots 0… → tokens (N, I) and guided logits (N, I, C)."""
    for slot, picture in enumerate(batch):
        admit(runner, slot, picture)
    tokens, logits = [], []
    for position in range(runner.config.picture.num_tokens):
        pending = runner.step([row(slot, position, picture) for slot, picture in enumerate(batch)])
        logits.append(runner.guided_logits())
        tokens.append(pending.result().tokens)
    return np.stack(tokens, axis=1), np.stack(logits, axis=1)
