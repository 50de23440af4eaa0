"""The list of things nano can draw (`concepts.txt`) and how English counts them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CONCEPTS_FILE = Path(__file__).with_name("concepts.txt")

_IRREGULAR_PLURALS = {
    "aircraft": "aircraft", "biceps": "biceps", "box": "boxes", "child": "children", "deer": "deer", "dice": "dice",
    "die": "dice", "elf": "elves", "fish": "fish", "fleur-de-lis": "fleurs-de-lis", "foot": "feet", "goose": "geese",
    "knife": "knives", "leaf": "leaves", "loaf": "loaves", "man": "men", "mouse": "mice", "ox": "oxen",
    "person": "people", "sheaf": "sheaves", "sheep": "sheep", "shrimp": "shrimp", "tooth": "teeth", "wolf": "wolves",
    "woman": "women",
}  # fmt: skip
# Names that are plurals as they stand, by their last word: "sunglasses", "crossed flags".
_PLURALS = frozenset(
    """
    applause bags bars beads briefs bubbles cheers chopsticks crossbones dancers dividers dolls drops eyes fingers
    fireworks flags footprints fries glasses gloves goggles hands headphones hearts jeans knobs lungs maracas masks
    nails pants people pins points rails scales scissors shoes shorts skis socks sparkles sunglasses swords tabs tools
    underpants wrestlers
    """.split()  # noqa: SIM905
)
# What follows one of these says more of the thing before it: "slice of pizza", "person getting a haircut".
_LINKS = re.compile(
    " (?:of|with|without|in|on|at|to|from|over|behind|being|blowing|covering|exhaling|getting|holding|hugging|landing"
    "|licking|meditating|pointing|racing|raising|rolling|saying|taking|tipping) "
)


@dataclass(frozen=True, slots=True)
class Concept:
    """One drawable thing. `names[0]` is what the evaluation calls it; the others are synonyms."""

    emoji: str
    names: tuple[str, ...]
    natural_colours: tuple[str, ...]
    countable: bool
    tintable: bool
    mirrorable: bool
    extra: bool  # only in presets that ask for every concept
    weight: int  # how often it is shown, compared with others


def load_concepts(*, include_extra: bool) -> list[Concept]:
    """Read concepts.txt; lines marked `+` only when `include_extra`."""
    concepts = []
    for line in CONCEPTS_FILE.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        emoji, rest = line.split(" ", 1)
        flags = {mark for mark in "~!=+*" if mark in rest}
        names, _, colours = rest.translate(str.maketrans("", "", "~!=+*")).partition(":")
        if "+" in flags and not include_extra:
            continue
        concepts.append(
            Concept(
                emoji=emoji,
                names=tuple(name.strip() for name in names.split(",")),
                natural_colours=tuple(colour.strip() for colour in colours.split(",") if colour.strip()),
                countable="~" not in flags,
                tintable="!" not in flags,
                mirrorable="=" not in flags,
                extra="+" in flags,
                weight=4 if "*" in flags else 1,
            )
        )
    return concepts


def plural(name: str) -> str:
    """The plural of a name of the list: 'slice of pizza' → 'slices of pizza', 'sunglasses' → 'sunglasses'."""
    head, rest = _parted(name)
    *first, word = head.split(" ")
    return " ".join([*first, _plural_word(word)]) + rest


def _parted(name: str) -> tuple[str, str]:
    """The thing itself, and what more is said of it."""
    link = _LINKS.search(f"{name} ")
    return (name[: link.start()], name[link.start() :]) if link else (name, "")


def _plural_word(word: str) -> str:
    if word in _PLURALS:
        return word
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if word.endswith("man"):
        return word[:-3] + "men"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("ch", "sh", "ss", "x", "s", "z")):
        return word + "es"
    if word in ("tomato", "potato", "volcano", "mango", "hero", "superhero", "mosquito"):
        return word + "es"
    return word + "s"


def with_article(phrase: str) -> str:
    """'apple' → 'an apple', 'red jeans' → 'red jeans'. Letters that sound otherwise than they look are listed."""
    if _parted(phrase)[0].rsplit(" ", 1)[-1] in _PLURALS:
        return phrase
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("unicorn", "ufo", "euro"))
    vowel = vowel or phrase.startswith(("hourglass", "x ", "x-", "sos "))
    return f"{'an' if vowel else 'a'} {phrase}"
