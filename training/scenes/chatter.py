"""Words around a caption that change nothing in the picture: people say more than the thing they want.

Real openings and endings, common words and words that do not exist: what the model learns is that a word it cannot
place is no reason to draw something else. None of the held-out caption forms can arise (tests/training).
"""

from __future__ import annotations

import itertools
import random
from functools import cache

from training.scenes.concepts import load_concepts
from training.scenes.held_out import load_held_out
from training.scenes.palette import COLOUR_NAMES, SPELLINGS

OPENINGS = (
    "i want", "i need", "we want", "make", "make me", "give me", "create", "generate", "paint", "paint me", "imagine",
    "could you make", "let me have", "this is", "here is", "hello, make", "my", "some kind of", "just", "render",
)  # fmt: skip
ENDINGS = (
    "thanks", "thank you", "if you like", "for my class", "for a web page", "for my blog", "high quality",
    "very detailed", "highly detailed", "4k", "hd", "digital art", "beautiful", "simple", "in the best quality",
    "right now", "this time", "masterpiece", "nice", "looking good",
)  # fmt: skip
WORDS = """
    a about after again all also always any as be because been but by come could day do does each even every
    few find first for from get go good had has have he her here his how i if is it its just know last like
    long made make many may more most much must my never new no not now of often old one only or other our part
    really said same she should since so some still such take than that the their them then there these they thing
    think this those time to too until use very want was way we well were what when where which who
    why will word work year yes yet you your
""".split()  # noqa: SIM905
_ONSETS = "b bl br c ch d dr f fl g gl h j k l m n p pl qu r s sh sl st t th tr v w z".split()  # noqa: SIM905
_VOWELS = "a e i o u ai ea ee ou oo".split()  # noqa: SIM905
_CODAS = ["", "n", "r", "s", "t", "l", "m", "nd", "ck", "ng"]


def surround(text: str, rng: random.Random) -> str:
    """`text` with idle words in front of it, behind it, or both."""
    where = rng.random()
    if where < 0.65:
        text = f"{rng.choice(OPENINGS) if rng.random() < 0.5 else _idle_words(rng)} {text}"
    if where > 0.35:
        link = rng.choice((" ", ", "))
        text = f"{text}{link}{rng.choice(ENDINGS) if rng.random() < 0.5 else _idle_words(rng)}"
    return text


def _idle_words(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) if rng.random() < 0.6 else _no_word(rng) for _ in range(rng.randint(1, 4)))


def _no_word(rng: random.Random) -> str:
    while True:
        syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(1, 2)))
        if (word := "".join(syllables)) not in _meaningful():
            return word


@cache
def _meaningful() -> frozenset[str]:
    """Words that would say what is not in the picture, or what only the evaluation may say."""
    concepts = load_concepts(include_extra=True)
    names = [name for concept in concepts for name in concept.names]
    colours = [*COLOUR_NAMES, *itertools.chain(*SPELLINGS.values())]
    return frozenset(" ".join([*names, *colours, *load_held_out(concepts).templates]).replace(",", " ").split())
