"""Scenes in words. Lower case, as the text normaliser leaves a prompt; every caption is true of its scene."""

from __future__ import annotations

import random

from training.scenes.chatter import surround
from training.scenes.concepts import Concept, plural, with_article
from training.scenes.palette import SCENES, SPELLINGS
from training.scenes.spec import SceneSpec, Thing

NUMBERS = {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4"), 5: ("five", "5"), 6: ("six", "6")}
SIZE_WORDS = {"small": ("small", "tiny", "little"), "big": ("big", "large", "huge")}
STYLE_PHRASES = {"flat": ("flat {}", "{}, flat style", "flat drawing of {}", "{} in flat style"),
                 "3d": ("3d {}", "{}, 3d style", "3d render of {}", "{} in 3d"),
                 "noto": ("cartoon {}", "{}, cartoon style", "cartoon of {}", "{}, noto style")}  # fmt: skip
FRAMES = ("a picture of {}", "a drawing of {}", "an emoji of {}", "an image of {}", "draw {}",
          "a photo of {}", "a cute {bare}", "an illustration of {}", "{} emoji", "there is {}")  # fmt: skip
FRAMES_OF_MANY = tuple(frame for frame in FRAMES if frame not in ("a cute {bare}", "{} emoji", "there is {}"))
RELATION_PHRASES = {
    "left of": (
        "{a} to the left of {b}",
        "{a} on the left of {b}",
        "{a} left of {b}",
        "{a} on the left and {b} on the right",
    ),
    "right of": ("{a} to the right of {b}", "{a} on the right of {b}", "{a} right of {b}"),
    "above": ("{a} above {b}", "{a} on top of {b}", "{a} over {b}"),
    "below": ("{a} below {b}", "{a} under {b}", "{a} beneath {b}"),
    "beside": ("{a} and {b}", "{a} next to {b}", "{a} beside {b}", "{a} with {b}"),
}
POSITION_PHRASES = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom",),
    "top left": ("in the top left corner", "at the top left", "in the upper left"),
    "top right": ("in the top right corner", "at the top right", "in the upper right"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left"),
    "bottom right": ("in the bottom right corner", "at the bottom right", "in the lower right"),
}
CHATTER_SHARE = 0.4
FRAME_SHARE = 0.2
BACKGROUND_PHRASES = ("on {a} background", "with {a} background", "against {a} background", "on {bare}")


class Captioner:
    def __init__(self, concepts: list[Concept]):
        self.concepts = concepts

    def caption(self, spec: SceneSpec, rng: random.Random) -> str:
        """One of the many ways to say what `spec` shows."""
        if spec.relation is not None:
            first, second = (self._singular(thing, None, rng) for thing in spec.things)
            text = rng.choice(RELATION_PHRASES[spec.relation]).format(a=first, b=second)
        elif spec.count > 1:
            text = f"{rng.choice(NUMBERS[spec.count])} {self._plural(spec.things[0], rng)}"
        else:
            text = self._single(spec, rng)
        if len(spec.things) * spec.count > 1 and spec.style is None and rng.random() < FRAME_SHARE:
            text = rng.choice(FRAMES_OF_MANY).format(text)
        if spec.style is not None:
            text = rng.choice(STYLE_PHRASES[spec.style]).format(text)
        text = self._background(text, spec.background, rng)
        return surround(text, rng) if rng.random() < CHATTER_SHARE else text

    def _single(self, spec: SceneSpec, rng: random.Random) -> str:
        thing = spec.things[0]
        bare = self._described(thing, spec.size, rng)
        text = self._article(thing, bare, rng)
        if thing.colour and rng.random() < 0.08:
            # Not its natural colour: a red apple that is black is neither.
            plain = self._article(thing, " ".join([*self._size(spec.size, rng), self._name(thing, rng)]), rng)
            text = f"{plain} that is {rng.choice(SPELLINGS.get(thing.colour, (thing.colour,)))}"
        if spec.position is not None:
            text = f"{text} {rng.choice(POSITION_PHRASES[spec.position])}"
        elif spec.style is None and rng.random() < FRAME_SHARE:
            return rng.choice(FRAMES).format(text, bare=bare)
        return text

    def _singular(self, thing: Thing, size: str | None, rng: random.Random) -> str:
        return self._article(thing, self._described(thing, size, rng), rng)

    def _article(self, thing: Thing, described: str, rng: random.Random) -> str:
        if not self.concepts[thing.concept].countable:
            return described
        drawn = rng.random()
        if drawn < 0.2:
            return described
        return f"the {described}" if drawn < 0.27 else with_article(described)

    def _described(self, thing: Thing, size: str | None, rng: random.Random) -> str:
        return " ".join([*self._size(size, rng), *self._colour(thing, rng), self._name(thing, rng)])

    def _size(self, size: str | None, rng: random.Random) -> list[str]:
        return [rng.choice(SIZE_WORDS[size])] if size else []

    def _plural(self, thing: Thing, rng: random.Random) -> str:
        return " ".join([*self._colour(thing, rng), plural(self._name(thing, rng))])

    def _name(self, thing: Thing, rng: random.Random) -> str:
        names = self.concepts[thing.concept].names
        return names[0] if rng.random() < 0.4 else rng.choice(names)

    def _colour(self, thing: Thing, rng: random.Random) -> list[str]:
        natural = self.concepts[thing.concept].natural_colours
        if thing.colour is not None:
            return [rng.choice(SPELLINGS.get(thing.colour, (thing.colour,)))]
        return [rng.choice(natural)] if natural and rng.random() < 0.3 else []

    def _background(self, text: str, background: str, rng: random.Random) -> str:
        if background in SCENES:
            return f"{text} {rng.choice(SCENES[background])}"
        if background == "plain":
            return text
        colour = rng.choice(SPELLINGS.get(background, (background,)))
        phrase = rng.choice(BACKGROUND_PHRASES)
        return (
            f"{text} {phrase.format(a=with_article(f'{colour} background').removesuffix(' background'), bare=colour)}"
        )
