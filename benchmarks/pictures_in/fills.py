"""Holes filled on a runner without an engine around it: many at a time, by every way that is compared here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.drawing.repaint import kept_behind
from dalle_server.engine.rng import MASK32, philox4x32
from dalle_server.engine.runners.base import LOGPROBS, StepRow
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.cpu.runner import CpuRunner
from dalle_server.engine.runners.select import choose_runner
from dalle_server.request import FREE, ImageKey, SamplingParams
from dalle_server.text import open_tokenizer
from dalle_server.variants import ModelSize

NUM_SLOTS = 32
RESAMPLING_SEED = 2**40  # of the particles' own noise

Grids = NDArray[np.int32]  # (N, I)


@dataclass(frozen=True, slots=True)
class Filled:
    grids: Grids  # (N, I)
    scores: NDArray[np.float64]  # (N,) log-likelihood of the kept tokens behind the first free one


class Filler:
    """The embedded model, its pictures as grids of tokens."""

    def __init__(self) -> None:
        checkpoint = open_checkpoint(find_checkpoint(ModelSize.NANO))
        runner = choose_runner(checkpoint, RunnerSettings("compiled", "auto", device="cpu", num_slots=NUM_SLOTS))
        assert isinstance(runner, CpuRunner)
        self.runner, self.config = runner, checkpoint.config
        self._tokenizer = open_tokenizer(checkpoint)
        self._texts: dict[str, Any] = {}

    @property
    def sampling(self) -> SamplingParams:
        return self.config.sampling

    def fill(
        self, prompts: Sequence[str], forced: Grids, keys: Sequence[ImageKey], *,
        near: tuple[Grids, float] | None = None, particles: int = 1,
    ) -> Filled:  # fmt: skip
        """(N, I) grids with FREE where the model writes → whole ones.

        `near`: (N, I) tokens that each place is drawn to, and how strongly. `particles`: so many neighbours in the
        batch fill one hole, and copy each other where the kept tokens say that some have gone wrong.
        """
        parts = [slice(start, start + NUM_SLOTS) for start in range(0, len(forced), NUM_SLOTS)]
        found = [
            self._fill(
                prompts[part], forced[part], keys[part], None if near is None else (near[0][part], near[1]), particles
            )
            for part in parts
        ]
        return Filled(np.concatenate([each.grids for each in found]), np.concatenate([each.scores for each in found]))

    def _fill(
        self, prompts: Sequence[str], forced: Grids, keys: Sequence[ImageKey], near: tuple[Grids, float] | None,
        particles: int,
    ) -> Filled:  # fmt: skip
        runner, sampling = self.runner, self.sampling
        for slot, prompt in enumerate(prompts):
            runner.admit(slot, self._text(prompt), self._text(""))
        behind = np.stack([kept_behind(row) for row in forced])
        grids, scores, weights = forced.copy(), np.zeros(len(forced)), np.zeros(len(forced))
        for position in range(forced.shape[1]):
            wants = [frozenset({LOGPROBS}) if told else frozenset[str]() for told in behind[:, position]]
            rows = [
                StepRow(slot, position, key, sampling, int(forced[slot, position]), wants[slot])
                if near is None
                else StepRow(slot, position, key, sampling, near=int(near[0][slot, position]), pull=near[1])
                for slot, key in enumerate(keys)
            ]
            written = runner.step(rows).result()
            grids[:, position] = written.tokens
            if written.logprobs is not None:
                likely = np.where(behind[:, position], written.logprobs[:, 0], 0.0)
                scores += likely
                weights += likely
                if particles > 1:
                    self._resample(grids, scores, weights, keys, position, particles)
        return Filled(grids, scores)

    def _text(self, prompt: str) -> Any:
        if prompt not in self._texts:
            text, _ = self._tokenizer.pair(prompt, "")
            (self._texts[prompt],) = self.runner.encode([text])
        return self._texts[prompt]

    def _resample(
        self, grids: Grids, scores: NDArray[np.float64], weights: NDArray[np.float64], keys: Sequence[ImageKey],
        position: int, particles: int,
    ) -> None:  # fmt: skip
        """Systematic resampling within each group whose effective number has fallen below half."""
        for start in range(0, len(grids), particles):
            group = slice(start, start + particles)
            share = np.exp(weights[group] - weights[group].max())
            share /= share.sum()
            if 1 / np.square(share).sum() >= particles / 2:
                continue
            lot = float(uniform(np.array([position]), keys[start].index, RESAMPLING_SEED + keys[start].seed)[0])
            chosen = np.searchsorted(np.cumsum(share), (np.arange(particles) + lot) / particles).clip(0, particles - 1)
            sources = start + chosen
            grids[group], scores[group], weights[group] = grids[sources], scores[sources], 0.0
            self._copy_slots(sources, np.arange(start, start + particles))

    def _copy_slots(self, sources: NDArray[np.intp], targets: NDArray[np.intp]) -> None:
        """Keys, values and the last token of slots: what each particle has seen so far."""
        caches = self.runner._step._caches.arrays  # type: ignore[attr-defined]
        for name in ("keys", "values"):
            array = caches[name]  # (L, 2 · slots, …)
            for row in range(2):
                array[:, 2 * targets + row] = array[:, 2 * sources + row]
        self.runner._last_tokens[targets] = self.runner._last_tokens[sources]


def uniform(positions: NDArray[np.integer[Any]], image_index: int, seed: int) -> NDArray[np.float64]:
    """A number between 0 and 1 for each token position. No part of the noise of sampling: there the last word is 0."""
    zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    key = (np.array([seed & MASK32], np.int64), np.array([(seed >> 32) & MASK32], np.int64))
    counter = (np.asarray(positions, np.int64), zero, np.array([image_index & MASK32], np.int64), one)
    lots: NDArray[np.float64] = (philox4x32(counter, key)[0] + 0.5) * 2.0**-32
    return lots


def forced_by(given: Grids, free: NDArray[np.bool_]) -> Grids:
    """(N, I) tokens and which are free, (I,) or (N, I) → FREE in their places."""
    return np.where(free, np.int32(FREE), given).astype(np.int32)
