"""Stage 6: scores. Fixed prompts → pictures → the judge; beside every score its ceiling and its control.

ceiling (renders)      the judge on true pictures of the same scenes
ceiling (recon.)       the same after a trip through the tokens: what a perfect transformer would get
control                the judge on the generated pictures of other prompts: what the score is without the text
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dalle_server.models.vqgan import VQGAN
from dalle_server.request import SamplingParams
from training.judging.judge import Judge
from training.judging.prompts import Prompter, Prompts
from training.learning.vqgan import decode_images, psnr, tokenize_images, used_codes
from training.scenes.artwork import STYLES
from training.scenes.composer import Composer, Plan
from training.scenes.spec import POSITIONS, Placement, SceneSampler, SceneSpec

SCENES_RECONSTRUCTED = 512
OTHERS = 32  # pictures of other prompts that each prompt's control looks at
Judgement = Callable[[Tensor, SceneSpec], Tensor]  # pictures of one spec → right or wrong, (B,) bool
Generate = Callable[[list[str], int], Tensor]  # (captions, seed) → pictures
Decoded = Callable[[list[Plan]], Tensor]  # pictures of the tokens that the transformer is to say of scenes


@dataclass(frozen=True, slots=True)
class Question:
    """One score: prompts with the scenes they describe, and what counts as right."""

    name: str
    prompts: Prompts
    right: Judgement


@dataclass(frozen=True, slots=True)
class Asking:
    """How much the stages that score ask."""

    seeds: int = 3
    every: int = 1  # only every so manyth prompt of a question
    things: str | None = None  # "all" or "everyday"; None leaves it to the stage

    def everyday(self, default: bool) -> bool:
        return default if self.things is None else self.things == "everyday"

    def thinned(self, questions: list[Question]) -> list[Question]:
        """Raises ValueError where nothing is left beside a prompt that could be its control."""
        asked = [replace(question, prompts=question.prompts[:: self.every]) for question in questions]
        if short := [question.name for question in asked if len(question.prompts) < 2]:
            raise ValueError(f"--every {self.every} leaves fewer than two prompts of {', '.join(short)}")
        return asked


@dataclass(frozen=True, slots=True)
class Score:
    name: str
    prompts: int
    seeds: int
    score: float
    low: float  # 95 % Wilson interval over prompts: the seeds of one prompt are mostly right or wrong together
    high: float
    ceiling_renders: float
    ceiling_reconstructions: float
    control: float


def questions(sampler: SceneSampler, judge: Judge, *, seed: int = 2026, everyday: bool = False) -> list[Question]:
    """What is asked (of all concepts, or of the everyday ones), and who says whether the answer is right."""

    def top(places: int) -> Judgement:
        return lambda images, spec: judge.concept_rank(images, spec) < places

    def in_place(images: Tensor, spec: SceneSpec) -> Tensor:
        return judge.position_right(images, spec, list(POSITIONS))

    ask = Prompter(sampler, seed, everyday=everyday)
    singles, synonyms, colours, unseen = ask.singles(), ask.synonyms(), ask.colours(), ask.unseen_colours()
    return [
        Question("single object, top-1", singles, top(1)),
        Question("single object, top-5", singles, top(5)),
        Question("synonym, top-1", synonyms, top(1)),
        Question("unseen caption form, top-1", ask.unseen_forms(), top(1)),
        Question("coloured object: object, top-1", colours, top(1)),
        Question("coloured object: colour", colours, judge.colour_right),
        Question("unseen colour of object: object, top-1", unseen, top(1)),
        Question("unseen colour of object: colour", unseen, judge.colour_right),
        Question("background colour", ask.backgrounds(), judge.background_right),
        Question("thing on a scene: thing, top-1", ask.scenes(), top(1)),
        Question("position", ask.positions(), in_place),
        Question("count", ask.counts(), judge.count_right),
        Question("pair: both right and in order", ask.pairs(), judge.pair_right),
        Question("unseen pair: both right and in order", ask.unseen_pairs(), judge.pair_right),
    ]


def score(question: Question, generate: Generate, decoded: Decoded, composer: Composer, *, seeds: int) -> Score:
    """Ask one question with several seeds."""
    specs = [spec for spec, _ in question.prompts]
    plans = composer.plan(specs, random.Random("ceiling"))
    true, reconstructed = composer.paint(plans), decoded(plans)
    drawn = [generate([text for _, text in question.prompts], seed) for seed in range(seeds)]
    rng = random.Random("control")
    rows = []
    for i, spec in enumerate(specs):
        # Drawn by lot: prompts of one answer stand in a row, so a fixed distance away nearly all ask for another.
        others = rng.sample([j for j in range(len(specs)) if j != i], min(OTHERS, len(specs) - 1))
        right = question.right(torch.stack([true[i], reconstructed[i], *(own[i] for own in drawn)]), spec).float()
        control = question.right(drawn[0][others], spec).float().mean()
        rows.append(torch.stack([right[0], right[1], control, right[2:].mean()]))
    renders, reconstructions, chance, value = torch.stack(rows).mean(0).tolist()
    low, high = wilson(value, len(specs))
    return Score(question.name, len(specs), seeds, value, low, high, renders, reconstructions, chance)


def right_share(question: Question, generate: Generate) -> float:
    """The score alone, of one seed."""
    pictures = generate([text for _, text in question.prompts], 0)
    specs = [spec for spec, _ in question.prompts]
    right = [question.right(picture[None], spec) for picture, spec in zip(pictures, specs, strict=True)]
    return float(torch.cat(right).float().mean())


def remembered(generate: Generate, seeds: int) -> Generate:
    """The same, but what was drawn last is not drawn again: several questions ask for the same pictures."""
    kept = lru_cache(seeds)(lambda captions, seed: generate(list(captions), seed))
    return lambda captions, seed: kept(tuple(captions), seed)


def reconstruction(vqgan: VQGAN, decoded: Decoded, sampler: SceneSampler, composer: Composer) -> dict[str, float]:
    """PSNR in dB of fresh scenes after a trip through the tokens, by the encoder's own and by those that a
    transformer is to say; and how many codes are in effective use.
    """
    rng = random.Random("reconstruction")
    plans = composer.plan([sampler.sample(rng) for _ in range(SCENES_RECONSTRUCTED)], rng)
    images = composer.paint(plans)
    tokens = tokenize_images(vqgan, images)
    return {
        "psnr_db": round(psnr(images, decode_images(vqgan, tokens)), 2),
        "said_psnr_db": round(psnr(images, decoded(plans)), 2),
        "codes_used": round(used_codes(tokens, vqgan.config.n_embed)),
    }


def seeds_differ(generate: Generate, prompts: Prompts, composer: Composer) -> float:
    """Mean distance of the pixels of two seeds, over that of two artworks of the thing in one place: 1 is as far."""
    texts, specs = [text for _, text in prompts], [spec for spec, _ in prompts]
    apart = (generate(texts, 0) - generate(texts, 1)).abs().mean()
    centre = Placement(0.0, 0.0, composer.variety.alone)
    rng = random.Random(0)
    artworks = [composer.compose_at(specs, [replace(centre, style=s)] * len(specs), rng) for s in STYLES[:2]]
    return round(float(apart / (artworks[0] - artworks[1]).abs().mean()), 2)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a binomial share (Wilson 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half


def report(scores: list[Score], quality: dict[str, float], target: Path) -> str:
    """Write the scores as JSON and return them as a Markdown table."""
    results = {"reconstruction": quality, "scores": [asdict(row) for row in scores]}
    target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    lines = [
        "| question | score (95 % interval) | prompts × seeds | ceiling: renders | ceiling: recon. | control |",
        "|---|---|---|---|---|---|",
    ]
    for row in scores:
        lines.append(
            f"| {row.name} | **{row.score:.0%}** ({row.low:.0%}–{row.high:.0%}) | {row.prompts} × {row.seeds}"
            f" | {row.ceiling_renders:.0%} | {row.ceiling_reconstructions:.0%} | {row.control:.0%} |"
        )
    return "\n".join(lines)


def sampling_grid() -> list[SamplingParams]:
    """The settings among which the defaults are chosen."""
    return [
        SamplingParams(condition_scale=scale, temperature=temperature, top_k=50, top_p=top_p)
        for scale in (1.0, 1.5)
        for temperature, top_p in ((0.7, 0.7), (0.4, 1.0), (0.2, 1.0))
    ]
