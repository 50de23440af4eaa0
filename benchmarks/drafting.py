"""Would guessing several tokens at once pay? How many guesses a trained model confirms, on nano.

Sampling with fixed noise is a function of the tokens before, so a step may carry guesses for the next tokens and keep
the ones that it would have drawn itself: the picture stays the same, bit for bit ("predictive sampling", Wiggers and
Hoogeboom 2020, arXiv:2002.09928). The guesses are free here: what the step before drew after guesses that turned out
wrong, and behind them the token above in the grid. A step of W tokens costs more than a step of one (at Mini's size
about 1.3× for 4 and 1.7× for 8, docs/performance.md), so only more confirmed tokens than that would be a gain.

    python -m benchmarks.drafting [--window 2 4 8]

Prints tokens a step for each window and guidance; ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import machine
from dalle_server import assets
from dalle_server.checkpoints import open_checkpoint
from dalle_server.engine.runners.base import StepRow
from dalle_server.engine.sampling import guide, sample
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.dalle_bart import DalleBart
from dalle_server.request import ImageKey, SamplingParams
from dalle_server.text import TextTokenizer

PROMPTS = (
    "a red apple", "two cats", "a blue car on a green background", "a house", "three stars", "a robot",
    "a dog to the left of a tree", "a rocket in space", "a yellow flower", "a small fish in the sea",
)  # fmt: skip


class Drafter:
    """nano, teacher-forced: what a step with guesses would answer, without the machinery of a runner."""

    def __init__(self) -> None:
        checkpoint = open_checkpoint(Path(assets.__file__).parent / "nano")
        self.config = checkpoint.config
        self.model = DalleBart(self.config.sizes(DalleBartConfig))
        weights = {name: np.asarray(value, np.float32).copy() for name, value in checkpoint.transformer.items()}
        self.model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        self.tokenizer = TextTokenizer.from_checkpoint(checkpoint)

    def tokens_a_step(self, prompt: str, sampling: SamplingParams, window: int, seed: int) -> float:
        memory, mask = self._encoded(prompt)
        drawn: list[int] = []
        guesses: list[int] = []
        steps = 0
        while len(drawn) < self.config.picture.num_tokens:
            width = min(window, self.config.picture.num_tokens - len(drawn))
            guesses = self._filled(drawn, guesses[: width - 1], width - 1)
            answers = self._answers(drawn, guesses, memory, mask, sampling, seed)
            confirmed = 1
            while confirmed < width and guesses[confirmed - 1] == answers[confirmed - 1]:
                confirmed += 1
            drawn += answers[:confirmed]
            guesses = answers[confirmed:]
            steps += 1
        return len(drawn) / steps

    def _encoded(self, prompt: str) -> tuple[Tensor, Tensor]:
        texts = self.tokenizer.pair(prompt)
        longest = max(text.length for text in texts)
        ids = torch.from_numpy(np.stack([text.ids[:longest] for text in texts])).long()
        mask = torch.tensor([[int(i < text.length) for i in range(longest)] for text in texts])
        return self.model.encode(ids, mask), mask

    def _filled(self, drawn: list[int], guesses: list[int], wanted: int) -> list[int]:
        """`guesses`, and behind them the tokens above in the grid."""
        known = drawn + guesses
        while len(known) < len(drawn) + wanted:
            above = len(known) - self.config.picture.grid_width
            known.append(known[above] if above >= 0 else 0)
        return known[len(drawn) :]

    def _answers(
        self, drawn: list[int], guesses: list[int], memory: Tensor, mask: Tensor, sampling: SamplingParams, seed: int
    ) -> list[int]:
        inputs = torch.tensor([[self.config.sizes(DalleBartConfig).decoder_start_token_id, *drawn, *guesses]] * 2)
        states = self.model.decoder(inputs, memory, mask)[:, len(drawn) :]
        logits = self.model.lm_head(states)[..., : self.config.picture.codebook_size].numpy()
        rows = [StepRow(0, len(drawn) + i, ImageKey(seed, 0), sampling) for i in range(len(guesses) + 1)]
        guided = guide(logits[0], logits[1], sampling.condition_scale or 1.0)
        return [int(token) for token in sample(guided, rows)]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, nargs="+", default=[2, 4, 8])
    arguments = parser.parse_args()
    drafter = Drafter()
    own = drafter.config.sampling
    results = []
    for sampling in (own, replace(own, temperature=1.0, condition_scale=10.0)):
        for window in arguments.window:
            rates = [drafter.tokens_a_step(prompt, sampling, window, seed) for seed, prompt in enumerate(PROMPTS)]
            rate = round(statistics.mean(rates), 2)
            setting = {"temperature": sampling.temperature, "guidance": sampling.condition_scale, "window": window}
            results.append({**setting, "tokens_a_step": rate})
            print(" ".join(f"{name} {value}" for name, value in results[-1].items()), flush=True)
    print(json.dumps({"benchmark": "drafting", "model": "nano", "results": results, **machine.describe()}))


if __name__ == "__main__":
    main()
