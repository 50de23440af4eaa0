"""The judge tells true renders apart, and reads the two halves of a pair."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.tiny import PRESET, make_recipe
from training.judging.classifier import SIDE_PX, Classifier
from training.judging.evaluate import remembered
from training.judging.judge import Judge
from training.learning import loop
from training.recipe import Recipe, learn_to_judge
from training.scenes.composer import Composer
from training.scenes.spec import POSITIONS, SceneSpec, Thing


class ByColour(nn.Module):
    """Names a disc by its colour: what the trained classifier does for real artwork."""

    def __init__(self, composer: Composer):
        super().__init__()
        renders = composer.compose([SceneSpec(things=(Thing(i),)) for i in range(composer.atlas.num_concepts)], RNG)
        self.colours = torch.stack([self._ink(image) for image in renders])

    def forward(self, images: Tensor) -> Tensor:
        seen = torch.stack([self._ink(image) for image in images])
        return -1000 * torch.cdist(seen, self.colours)

    @staticmethod
    def _ink(image: Tensor) -> Tensor:
        pixels = image.flatten(1).T
        return pixels[(1 - pixels).square().sum(1).argmax()]  # the pixel farthest from the white page


RNG = random.Random(0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    # One artwork of each thing: its colour alone tells what it is.
    return make_recipe(tmp_path_factory.mktemp("judge"), PRESET.replace('styles = ["3d", "noto"]', 'styles = ["3d"]'))


@pytest.fixture(scope="module")
def judge(tiny: Recipe) -> Judge:
    return Judge(tiny.small_composer, ByColour(tiny.small_composer))  # type: ignore[arg-type]


def draw(tiny: Recipe, spec: SceneSpec) -> Tensor:
    return tiny.small_composer.compose([spec] * 4, RNG)


def test_true_renders_are_right_and_others_wrong(tiny: Recipe, judge: Judge) -> None:
    asked = SceneSpec(things=(Thing(3),), background="blue")
    assert judge.background_right(draw(tiny, asked), asked).all()
    assert not judge.background_right(draw(tiny, asked), replace(asked, background="red")).any()

    asked = SceneSpec(things=(Thing(3),), position="left")
    assert judge.position_right(draw(tiny, asked), asked, list(POSITIONS)).all()
    assert not judge.position_right(draw(tiny, asked), replace(asked, position="top"), list(POSITIONS)).any()

    asked = SceneSpec(things=(Thing(3),), count=3)
    assert judge.count_right(draw(tiny, asked), asked).all()
    assert not judge.count_right(draw(tiny, asked), replace(asked, count=4)).any()

    asked = SceneSpec(things=(Thing(3, "red"),))
    assert judge.colour_right(draw(tiny, asked), asked).all()
    assert not judge.colour_right(draw(tiny, asked), SceneSpec(things=(Thing(3, "green"),))).any()


def test_a_thing_is_ranked_first_when_it_is_there(tiny: Recipe, judge: Judge) -> None:
    asked = SceneSpec(things=(Thing(3),))
    assert (judge.concept_rank(draw(tiny, asked), asked) == 0).all()
    assert (judge.concept_rank(draw(tiny, SceneSpec(things=(Thing(9),))), asked) > 0).all()


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below", "beside"])
def test_a_pair_is_right_in_its_order_alone(tiny: Recipe, judge: Judge, relation: str) -> None:
    asked = SceneSpec(things=(Thing(3), Thing(9)), relation=relation)
    turned = replace(asked, things=asked.things[::-1])
    pictures = draw(tiny, asked)
    assert judge.pair_right(pictures, asked).all()
    assert judge.pair_right(pictures, turned).all() == (relation == "beside")
    assert not judge.pair_right(pictures, replace(asked, things=(Thing(3), Thing(20)))).any()


def test_the_classifier_learns_from_renders_and_looks_at_any_size(tmp_path: Path) -> None:
    tiny = make_recipe(tmp_path)
    learn_to_judge(tiny)
    assert isinstance(tiny.classifier, Classifier)
    assert loop.load_average(tiny.classifier_file).keys() == tiny.classifier.state_dict().keys()
    for side in (SIDE_PX, 24):
        assert tiny.classifier(torch.rand(2, 3, side, side)).shape == (2, len(tiny.concepts))


def test_any_artwork_of_the_thing_counts(tmp_path: Path) -> None:
    tiny = make_recipe(tmp_path)
    judge = Judge(tiny.small_composer, ByColour(tiny.small_composer))  # type: ignore[arg-type]
    asked = SceneSpec(things=(Thing(3),), background="blue")
    for style in ("3d", "noto"):
        drawn = tiny.small_composer.compose([replace(asked, style=style)] * 4, RNG)
        assert judge.background_right(drawn, asked).all()
        assert judge.background_right(drawn, replace(asked, style=style)).all()


def test_questions_that_ask_for_the_same_pictures_share_them() -> None:
    drawn: list[tuple[list[str], int]] = []

    def draw(captions: list[str], seed: int) -> Tensor:
        drawn.append((captions, seed))
        return torch.full((len(captions), 1), float(seed))

    again = remembered(draw, 2)
    for captions in (["a cat"], ["a cat"], ["a dog"], ["a cat"]):
        assert [float(again(captions, seed)) for seed in (0, 1)] == [0, 1]
    assert drawn == [(captions, seed) for captions in (["a cat"], ["a dog"], ["a cat"]) for seed in (0, 1)]
