"""The list of things nano can draw (`concepts.txt`) and how English counts them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONCEPTS_FILE = Path(__file__).with_name("concepts.txt")

_IRREGULAR_PLURALS = {
    "child": "children", "deer": "deer", "die": "dice", "fish": "fish", "foot": "feet", "goose": "geese",
    "knife": "knives",
    "leaf": "leaves", "loaf": "loaves", "man": "men", "mouse": "mice", "octopus": "octopuses", "sheep": "sheep",
    "shrimp": "shrimp", "slice": "slices", "tooth": "teeth", "wolf": "wolves", "woman": "women", "box": "boxes",
}  # fmt: skip


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
    """The plural of a name of the list: 'slice of pizza' → 'slices of pizza', 'knife' → 'knives'."""
    head, link, tail = name.partition(" of ")
    if not link:
        head, link, tail = name.partition(" with ")
    *first, word = head.split(" ")
    return " ".join([*first, _plural_word(word)]) + link + tail


def _plural_word(word: str) -> str:
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
    """'apple' → 'an apple'. Vowel letters that sound like consonants are listed."""
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("unicorn", "ufo"))
    vowel = vowel or phrase.startswith("hourglass")
    return f"{'an' if vowel else 'a'} {phrase}"
