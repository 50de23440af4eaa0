"""The evaluation's prompts, each with the scene it describes."""

from __future__ import annotations

import random

from training.scenes.concepts import plural, with_article
from training.scenes.palette import COLOUR_NAMES, SCENES
from training.scenes.spec import RELATIONS, SceneSampler, SceneSpec, Thing

Prompts = list[tuple[SceneSpec, str]]


class Prompter:
    """The fixed evaluation prompts: they follow from the seed, concepts.txt and held_out.toml alone.

    `everyday` asks for the everyday concepts alone, those of a small model.
    """

    def __init__(self, sampler: SceneSampler, seed: int, *, everyday: bool = False):
        self.rng = random.Random(seed)
        self.concepts, self.held_out = sampler.concepts, sampler.held_out
        self.everything = [i for i, concept in enumerate(self.concepts) if not (everyday and concept.extra)]
        self.countable = [i for i in sampler.countable if not (everyday and self.concepts[i].extra)]

    def name(self, concept: int, colour: str | None = None) -> str:
        phrase = f"{colour} {self.concepts[concept].names[0]}" if colour else self.concepts[concept].names[0]
        return with_article(phrase) if self.concepts[concept].countable else phrase

    def singles(self) -> Prompts:
        return [(SceneSpec(things=(Thing(i),)), self.name(i)) for i in self.everything]

    def synonyms(self) -> Prompts:
        spoken = [(i, other) for i in self.everything for other in self.concepts[i].names[1:2]]
        return [(SceneSpec(things=(Thing(i),)), with_article(other) if self.concepts[i].countable else other)
                for i, other in spoken]  # fmt: skip

    def colours(self) -> Prompts:
        tintable = [i for i in self.everything if self.concepts[i].tintable]
        found: Prompts = []
        while len(found) < 88:
            thing = Thing(self.rng.choice(tintable), COLOUR_NAMES[len(found) % len(COLOUR_NAMES)])
            if not self.held_out.contains(SceneSpec(things=(thing,))):
                found.append((SceneSpec(things=(thing,)), self.name(thing.concept, thing.colour)))
        return found

    def unseen_colours(self) -> Prompts:
        return [(SceneSpec(things=(Thing(i, c),)), self.name(i, c)) for i, c in sorted(self.held_out.colours)]

    def unseen_forms(self) -> Prompts:
        return [(SceneSpec(things=(Thing(i),)), template.format(thing=self.name(i)))
                for template in self.held_out.templates for i in self.rng.sample(self.everything, 20)]  # fmt: skip

    def backgrounds(self) -> Prompts:
        return [(SceneSpec(things=(Thing(i),), background=c), f"{self.name(i)} on {with_article(c)} background")
                for c in COLOUR_NAMES for i in self.rng.sample(self.everything, 6)]  # fmt: skip

    def scenes(self) -> Prompts:
        return [(SceneSpec(things=(Thing(i),), background=scene), f"{self.name(i)} {words[0]}")
                for scene, words in SCENES.items() for i in self.rng.sample(self.everything, 6)]  # fmt: skip

    def positions(self) -> Prompts:
        where = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
        return [(SceneSpec(things=(Thing(i),), position=p), f"{self.name(i)} {words}")
                for p, words in where.items() for i in self.rng.sample(self.everything, 12)]  # fmt: skip

    def counts(self) -> Prompts:
        words = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
        return [(SceneSpec(things=(Thing(i),), count=n), f"{words[n]} {plural(self.concepts[i].names[0])}")
                for n in words for i in self.rng.sample(self.countable, 12)]  # fmt: skip

    def pairs(self) -> Prompts:
        found: Prompts = []
        while len(found) < 30:
            spec, text = self._pair(RELATIONS[len(found) % len(RELATIONS)], *self.rng.sample(self.everything, 2))
            if not self.held_out.contains(spec):
                found.append((spec, text))
        return found

    def unseen_pairs(self) -> Prompts:
        both_ways = [(both, relation) for both in sorted(self.held_out.pairs, key=sorted) for relation in RELATIONS[:2]]
        return [self._pair(relation, *sorted(both)) for both, relation in both_ways]

    def _pair(self, relation: str, a: int, b: int) -> tuple[SceneSpec, str]:
        words = {"left of": "to the left of", "right of": "to the right of", "beside": "and"}.get(relation, relation)
        return SceneSpec(things=(Thing(a), Thing(b)), relation=relation), f"{self.name(a)} {words} {self.name(b)}"
