"""Every family's goldens as pictures to write, for comparing builds of the compiled code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import TextTokens
from tests.families import janus_goldens
from tests.parity.decoding import Picture, pictures
from tests.runners.golden_checkpoints import GOLDENS, GREEDY, goldens, open_golden
from tests.runners.random_checkpoint import START, random_janus, random_text

CASES = (*GOLDENS, "janus", "janus of grouped heads")


def case(name: str) -> tuple[Checkpoint, list[Picture]]:
    """Forced tokens, so that a difference in the last bit is seen before it grows into another token."""
    if name in GOLDENS:
        golden = goldens(GOLDENS[name])
        forced = np.roll(golden["decoder_input_ids"], -1, axis=1)
        made = zip(pictures(golden, GREEDY), forced, strict=True)
        return open_golden(name), [replace(picture, forced=row) for picture, row in made]
    if name == "janus":
        return janus_goldens.opened(64), [_janus_picture(prompt) for prompt in range(janus_goldens.NUM_PROMPTS)]
    drawn = np.random.default_rng(1).integers(0, START, (2, 36))
    texts = [(random_text(n, 3 + 40 * n), random_text(9, 2)) for n in range(2)]
    return random_janus(), [Picture(*pair, GREEDY, forced=row) for pair, row in zip(texts, drawn, strict=True)]


def _janus_picture(prompt: int) -> Picture:
    conditional, unconditional = (janus_goldens.ids(prompt, branch).astype(np.int32) for branch in ("cond", "uncond"))
    texts = TextTokens(conditional, len(conditional)), TextTokens(unconditional, len(unconditional))
    return Picture(*texts, GREEDY, forced=janus_goldens.goldens()[f"p{prompt}_forced"])
