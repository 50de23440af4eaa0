"""Stage 6: scores. Fixed prompts → pictures → the judge; beside every score its ceiling and its control.

ceiling (renders)      the judge on true pictures of the same scenes
ceiling (recon.)       the same after a trip through the VQGAN: what a perfect transformer would get
control                the judge on the generated pictures of another prompt: what the score is without the text
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle_server.generation import SamplingParams
from dalle_server.models.vqgan import VQGAN
from training.concepts import plural, with_article
from training.judge import Judge
from training.palette import COLOUR_NAMES
from training.sample import decode_images
from training.scenes import POSITIONS, RELATIONS, Composer, SceneSampler, SceneSpec, Thing
from training.vqgan import psnr, tokenize_images, used_codes

Judgement = Callable[[Tensor, SceneSpec], Tensor]  # pictures of one spec → right or wrong, (B,) bool
Generate = Callable[[list[str], int], Tensor]  # (captions, seed) → pictures


@dataclass(frozen=True, slots=True)
class Question:
    """One score: prompts with the scenes they describe, and what counts as right."""

    name: str
    prompts: list[tuple[SceneSpec, str]]
    right: Judgement


@dataclass(frozen=True, slots=True)
class Score:
    name: str
    prompts: int
    seeds: int
    score: float
    low: float  # 95 % Wilson interval
    high: float
    ceiling_renders: float
    ceiling_reconstructions: float
    control: float


def questions(sampler: SceneSampler, judge: Judge, *, seed: int = 2026) -> list[Question]:
    """The fixed evaluation prompts: they follow from `seed`, concepts.txt and held_out.toml alone."""
    rng = random.Random(seed)
    concepts, held_out = sampler.concepts, sampler.held_out
    everything = range(len(concepts))
    tintable = [i for i in everything if concepts[i].tintable]

    def name(concept: int, colour: str | None = None) -> str:
        phrase = f"{colour} {concepts[concept].names[0]}" if colour else concepts[concept].names[0]
        return with_article(phrase) if concepts[concept].countable else phrase

    def top(places: int) -> Judgement:
        return lambda images, spec: judge.concept_rank(images, spec) < places

    singles = [(SceneSpec(things=(Thing(i),)), name(i)) for i in everything]
    synonyms = [(SceneSpec(things=(Thing(i),)), with_article(other) if concepts[i].countable else other)
                for i in everything for other in concepts[i].names[1:2]]  # fmt: skip
    colours = []
    while len(colours) < 88:
        thing = Thing(rng.choice(tintable), COLOUR_NAMES[len(colours) % len(COLOUR_NAMES)])
        if not held_out.contains(SceneSpec(things=(thing,))):
            colours.append((SceneSpec(things=(thing,)), name(thing.concept, thing.colour)))
    unseen = [(SceneSpec(things=(Thing(i, c),)), name(i, c)) for i, c in sorted(held_out.colours)]
    templates = [(SceneSpec(things=(Thing(i),)), template.format(thing=name(i)))
                 for template in held_out.templates for i in rng.sample(everything, 20)]  # fmt: skip
    backgrounds = [(SceneSpec(things=(Thing(i),), background=c), f"{name(i)} on {with_article(c)} background")
                   for c in COLOUR_NAMES for i in rng.sample(everything, 6)]  # fmt: skip
    sides = ["left", "right", "top", "bottom"]
    where = {side: f"{'on' if side in ('left', 'right') else 'at'} the {side}" for side in sides}
    positions = [(SceneSpec(things=(Thing(i),), position=p), f"{name(i)} {where[p]}")
                 for p in sides for i in rng.sample(everything, 12)]  # fmt: skip
    words = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
    counts = [(SceneSpec(things=(Thing(i),), count=n), f"{words[n]} {plural(concepts[i].names[0])}")
              for n in words for i in rng.sample(sampler.countable, 12)]  # fmt: skip

    def pair(relation: str, a: int, b: int) -> tuple[SceneSpec, str]:
        words = {"left of": "to the left of", "right of": "to the right of", "beside": "and"}.get(relation, relation)
        return SceneSpec(things=(Thing(a), Thing(b)), relation=relation), f"{name(a)} {words} {name(b)}"

    pairs = []
    while len(pairs) < 30:
        spec, text = pair(RELATIONS[len(pairs) % len(RELATIONS)], *rng.sample(everything, 2))
        if not held_out.contains(spec):
            pairs.append((spec, text))
    unseen_pairs = [
        pair(relation, *sorted(both)) for both in sorted(held_out.pairs, key=sorted) for relation in RELATIONS[:2]
    ]
    positions_judge: Judgement = lambda images, spec: judge.position_right(images, spec, list(POSITIONS))  # noqa: E731
    return [
        Question("single object, top-1", singles, top(1)),
        Question("single object, top-5", singles, top(5)),
        Question("synonym, top-1", synonyms, top(1)),
        Question("unseen caption form, top-1", templates, top(1)),
        Question("coloured object: object, top-1", colours, top(1)),
        Question("coloured object: colour", colours, judge.colour_right),
        Question("unseen colour of object: object, top-1", unseen, top(1)),
        Question("unseen colour of object: colour", unseen, judge.colour_right),
        Question("background colour", backgrounds, judge.background_right),
        Question("position", positions, positions_judge),
        Question("count", counts, judge.count_right),
        Question("pair: both right and in order", pairs, judge.pair_right),
        Question("unseen pair: both right and in order", unseen_pairs, judge.pair_right),
    ]


def score(question: Question, generate: Generate, vqgan: VQGAN, composer: Composer, *, seeds: int) -> Score:
    """Ask one question with several seeds."""
    specs = [spec for spec, _ in question.prompts]
    true = composer.compose(specs, random.Random("ceiling"))
    reconstructed = decode_images(vqgan, tokenize_images(vqgan, true))
    drawn = [generate([text for _, text in question.prompts], seed) for seed in range(seeds)]
    control = drawn[0].roll(len(specs) // 2 + 1, 0)  # the pictures of other prompts
    # One judgement for each prompt: its pictures side by side, (prompts, 3 + seeds)
    columns = torch.stack([true, reconstructed, control, *drawn], 1)
    right = torch.stack([question.right(row, spec) for row, spec in zip(columns, specs, strict=True)]).float()
    renders, reconstructions, chance = (float(share) for share in right[:, :3].mean(0))
    value = float(right[:, 3:].mean())
    low, high = wilson(value, len(specs) * seeds)
    return Score(question.name, len(specs), seeds, value, low, high, renders, reconstructions, chance)


def reconstruction(
    vqgan: VQGAN, sampler: SceneSampler, composer: Composer, *, num_scenes: int = 512
) -> dict[str, float]:
    """PSNR in dB of fresh scenes after a trip through the tokens, and how many codes are in effective use."""
    rng = random.Random("reconstruction")
    images = composer.compose([sampler.sample(rng) for _ in range(num_scenes)], rng)
    tokens = tokenize_images(vqgan, images)
    return {
        "psnr_db": round(psnr(images, decode_images(vqgan, tokens)), 2),
        "codes_used": round(used_codes(tokens, vqgan.config.n_embed)),
    }


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
        SamplingParams(condition_scale=scale, temperature=temperature, top_k=top_k, top_p=1.0)
        for scale in (1.5, 2.5, 4.0)
        for temperature, top_k in ((1.0, 50), (0.6, 50), (0.3, 50))
    ]
