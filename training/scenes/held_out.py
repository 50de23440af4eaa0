"""Combinations and caption forms that only the evaluation may use (`held_out.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.scenes.concepts import Concept

if TYPE_CHECKING:
    from training.scenes.spec import SceneSpec

HELD_OUT_FILE = Path(__file__).with_name("held_out.toml")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """`colours`: (concept, colour) never shown together; `pairs`: unordered concept pairs never shown together."""

    colours: frozenset[tuple[int, str]]
    pairs: frozenset[frozenset[int]]
    templates: tuple[str, ...]

    def sorted(self) -> tuple[object, ...]:
        """The same in every process; the order of a set is not."""
        return sorted(self.colours), sorted(map(sorted, self.pairs)), self.templates

    def contains(self, spec: SceneSpec) -> bool:
        if len(spec.things) == 2 and frozenset(thing.concept for thing in spec.things) in self.pairs:
            return True
        return any((thing.concept, thing.colour) in self.colours for thing in spec.things)


def load_held_out(concepts: list[Concept]) -> HeldOut:
    """Read held_out.toml; names that this preset's concepts lack are an error."""
    raw = tomllib.loads(HELD_OUT_FILE.read_text(encoding="utf-8"))
    index = {concept.names[0]: i for i, concept in enumerate(concepts)}
    return HeldOut(
        colours=frozenset((index[name], colour) for name, colours in raw["colours"].items() for colour in colours),
        pairs=frozenset(frozenset((index[a], index[b])) for a, b in raw["pairs"]),
        templates=tuple(raw["templates"]),
    )
