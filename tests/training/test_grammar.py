"""Captions are true, natural English, and never contain what the evaluation keeps for itself."""

import random
import re

import pytest

from training.scenes.captions import FRAMES, FRAMES_OF_MANY, STYLE_PHRASES, Captioner
from training.scenes.chatter import ENDINGS, OPENINGS, surround
from training.scenes.concepts import Concept, load_concepts, plural, with_article
from training.scenes.held_out import load_held_out
from training.scenes.palette import COLOUR_NAMES, SPELLINGS
from training.scenes.spec import Mixture, SceneSampler, SceneSpec, Thing

CONCEPTS = load_concepts(include_extra=False)
HELD_OUT = load_held_out(CONCEPTS)
NUM_SAMPLES = 20_000


def index(name: str) -> int:
    return next(i for i, concept in enumerate(CONCEPTS) if concept.names[0] == name)


@pytest.fixture(scope="module")
def samples() -> list[tuple[SceneSpec, str]]:
    sampler, captioner, rng = SceneSampler(CONCEPTS, HELD_OUT, Mixture()), Captioner(CONCEPTS), random.Random(7)
    specs = [sampler.sample(rng) for _ in range(NUM_SAMPLES)]
    return [(spec, captioner.caption(spec, rng)) for spec in specs]


def says(text: str, concept: Concept, colour: str | None = None) -> bool:
    """Whether a caption has one of the concept's names, right behind the colour if one is given."""
    names = "|".join(re.escape(form) for name in concept.names for form in (name, plural(name)))
    before = f"(?:{'|'.join(SPELLINGS.get(colour, (colour,)))}) " if colour else ""
    return re.search(rf"\b{before}(?:{names})\b", text) is not None


def test_no_scene_holds_a_held_out_combination(samples: list[tuple[SceneSpec, str]]) -> None:
    assert not any(HELD_OUT.contains(spec) for spec, _ in samples)


def test_no_caption_says_a_held_out_colour_of_an_object(samples: list[tuple[SceneSpec, str]]) -> None:
    for concept, colour in HELD_OUT.colours:
        others = [c for i, c in enumerate(CONCEPTS) if i != concept and set(c.names) & set(CONCEPTS[concept].names)]
        assert not others, "two concepts share a name: this test could not tell them apart"
        name = CONCEPTS[concept].names[0]
        said = [
            text
            for spec, text in samples
            if spec.things[0].concept == concept and says(text, CONCEPTS[concept], colour)
        ]
        assert not said, (name, colour, said[:3])


def test_no_caption_uses_a_held_out_form(samples: list[tuple[SceneSpec, str]]) -> None:
    forms = [re.compile(re.escape(template).replace(re.escape("{thing}"), ".+")) for template in HELD_OUT.templates]
    assert not [text for _, text in samples for form in forms if form.fullmatch(text)]


def test_the_tests_above_would_see_a_violation() -> None:
    concept, colour = sorted(HELD_OUT.colours)[0]
    spec = SceneSpec(things=(Thing(concept, colour),))
    assert HELD_OUT.contains(spec)
    assert says(Captioner(CONCEPTS).caption(spec, random.Random(0)), CONCEPTS[concept], colour)
    assert HELD_OUT.contains(SceneSpec(things=(Thing(index("dog")), Thing(index("cat"))), relation="above"))


def test_natural_colours_do_not_undo_the_hold_out() -> None:
    assert not [(c, colour) for c, colour in HELD_OUT.colours if colour in CONCEPTS[c].natural_colours]


def test_every_caption_names_what_is_drawn(samples: list[tuple[SceneSpec, str]]) -> None:
    for spec, text in samples:
        for thing in spec.things:
            assert says(text, CONCEPTS[thing.concept]), (spec, text)
            colours = SPELLINGS.get(thing.colour, (thing.colour,)) if thing.colour else ()
            assert not colours or any(colour in text for colour in colours), (spec, text)
        assert text == text.lower() == text.strip()
        if spec.style is not None:
            forms = (re.escape(phrase).replace(re.escape("{}"), ".+") for phrase in STYLE_PHRASES[spec.style])
            assert any(re.search(form, text) for form in forms), (spec, text)


def test_captions_of_many_say_nothing_of_one(samples: list[tuple[SceneSpec, str]]) -> None:
    many = [text for spec, text in samples if len(spec.things) * spec.count > 1]
    framed = [text for text in many if any(frame.format("") in text for frame in FRAMES_OF_MANY)]
    assert len(framed) > 0.1 * len(many)
    assert not [text for text in many if text.endswith(" emoji") or "there is" in text]


def test_idle_words_name_nothing() -> None:
    rng = random.Random(4)
    words = {word for _ in range(20_000) for word in surround("|", rng).split("|")[0].split()}
    assert words.isdisjoint({"cat", "car", "star", "moon", "black", "please", "draw", "show"})


def test_no_phrase_around_a_thing_names_another() -> None:
    names = {name for concept in load_concepts(include_extra=True) for name in concept.names}
    things = re.compile(rf"\b(?:{'|'.join(re.escape(form) for name in names for form in (name, plural(name)))})\b")
    phrases = [*OPENINGS, *ENDINGS, *(frame.format("", bare="") for frame in FRAMES)]
    assert things.search("as a gift for kids") and not [phrase for phrase in phrases if things.search(phrase)]


def test_a_thing_of_another_colour_is_not_called_its_natural_one_too() -> None:
    captioner, rng = Captioner(CONCEPTS), random.Random(2)
    spec = SceneSpec(things=(Thing(index("apple"), "black"),))
    relative = [text for text in (captioner.caption(spec, rng) for _ in range(3000)) if "that is black" in text]
    assert relative and not [text for text in relative if "red" in text]


def test_every_concept_and_colour_turns_up(samples: list[tuple[SceneSpec, str]]) -> None:
    assert {thing.concept for spec, _ in samples for thing in spec.things} == set(range(len(CONCEPTS)))
    assert {spec.background for spec, _ in samples} >= set(COLOUR_NAMES)


def test_names_are_unique() -> None:
    names = [name for concept in load_concepts(include_extra=True) for name in concept.names]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("apple", "apples"), ("slice of cake", "slices of cake"), ("knife", "knives"), ("cherry", "cherries"),
     ("fox", "foxes"),
     ("snowman", "snowmen"), ("sheep", "sheep"), ("bunch of grapes", "bunches of grapes"),
     ("sunglasses", "sunglasses"), ("french fries", "french fries"), ("crossed flags", "crossed flags"),
     ("magnifying glass", "magnifying glasses"), ("face rolling with laughter", "faces rolling with laughter"),
     ("person tipping a hand", "people tipping a hand"), ("hand pointing up", "hands pointing up")],
)  # fmt: skip
def test_plurals(name: str, expected: str) -> None:
    assert plural(name) == expected


def test_articles() -> None:
    assert with_article("apple") == "an apple"
    assert with_article("unicorn") == "a unicorn"
    assert with_article("hourglass") == "an hourglass"
    assert with_article("euro note") == "a euro note"
    assert with_article("x-ray") == "an x-ray"
    assert with_article("green sunglasses") == "green sunglasses"
    assert with_article("pair of sunglasses") == "a pair of sunglasses"
