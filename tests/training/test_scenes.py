"""Where a scene's things stand, how they are turned and tinted."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.tiny import make_recipe
from training.recipe import Recipe
from training.scenes.artwork import Atlas
from training.scenes.composer import Composer
from training.scenes.concepts import load_concepts
from training.scenes.spec import Placement, SceneSpec, Thing, Variety, layout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return make_recipe(tmp_path_factory.mktemp("scenes"))


@pytest.mark.parametrize("grid", [8, 10, 16])
def test_placements_leave_things_inside_the_picture(grid: int) -> None:
    for where in Variety(grid=grid).every(SceneSpec(things=(Thing(0),))):
        assert abs(where.dx) + where.side / 2 <= 0.5 + 1e-9
        assert abs(where.dy) + where.side / 2 <= 0.5 + 1e-9


def test_without_play_only_the_artwork_is_left_to_the_seed(tiny: Recipe) -> None:
    variety = Variety(styles=("3d", "flat", "noto"), grid=10, play=0)
    rng = random.Random(2)
    for spec in (tiny.sampler.sample(rng) for _ in range(100)):
        places = variety.every(spec)
        assert {(at.dx, at.dy) for at in places} == {(0.0, 0.0)}
        assert [at.style for at in places] == ([spec.style] if spec.style else ["3d", "flat", "noto"])


def test_composed_scenes_may_have_fewer_artworks() -> None:
    variety = Variety(styles=("3d", "flat", "noto"), composed_styles=("flat",))
    alone = SceneSpec(things=(Thing(0),))
    composed = [
        replace(alone, things=(Thing(0), Thing(1)), relation="beside"), replace(alone, things=(Thing(1, "red"),)),
        replace(alone, background="night"), replace(alone, count=2), replace(alone, size="big"),
        replace(alone, position="left"),
    ]  # fmt: skip
    rng = random.Random(3)
    for spec, styles in ((alone, {"3d", "flat", "noto"}), *((spec, {"flat"}) for spec in composed)):
        assert {at.style for at in variety.every(spec)} == styles == {variety.draw(spec, rng).style for _ in range(40)}
        assert variety.draw(replace(spec, style="noto"), rng).style == "noto"


@pytest.mark.parametrize("grid", [8, 10, 16])
def test_every_thing_stands_on_the_grid_and_apart_from_the_others(tiny: Recipe, grid: int) -> None:
    rng = random.Random(1)
    for _ in range(300):
        spec = tiny.sampler.sample(rng)
        layers = layout(spec, tiny.atlas, Variety(grid=grid).draw(spec, rng), grid)
        for layer in layers:
            edges = [(place - layer.side / 2) * grid for place in (layer.x, layer.y)]
            fits = abs(layer.side * grid - round(layer.side * grid)) < 0.01
            for place in edges if fits else (layer.x * grid, layer.y * grid):
                assert place == pytest.approx(round(place), abs=1e-6)
        for one, other in itertools.combinations(layers, 2):
            assert max(abs(one.x - other.x), abs(one.y - other.y)) >= one.side - 0.06


def test_scenes_show_the_colours_they_are_asked_for(tiny: Recipe) -> None:
    spec = SceneSpec(things=(Thing(0, "red"),), background="blue", position="left")
    image = tiny.small_composer.compose([spec], random.Random(0))[0]
    red, _, blue = image[:, 8, 4]
    assert red > 0.5 > blue
    red, _, blue = image[:, 8, 12]
    assert blue > 0.5 > red


def test_a_seed_changes_the_artwork_and_a_named_style_stays() -> None:
    rng = random.Random(0)
    variety = Variety(styles=("3d", "flat"), mirrored=0.5, turn_degrees=5.0)
    free = {variety.draw(SceneSpec(things=(Thing(0),)), rng) for _ in range(60)}
    assert {at.style for at in free} == {"3d", "flat"} and {at.mirrored for at in free} == {True, False}
    assert {variety.draw(SceneSpec(things=(Thing(0),), style="noto"), rng).style for _ in range(20)} == {"noto"}


def test_a_mirrored_thing_is_mirrored_and_a_turned_one_turned() -> None:
    sprite = torch.zeros(1, 16, 16, 4, dtype=torch.uint8)
    sprite[..., 3] = 255
    sprite[:, :, 8:] = 255  # the right half is white, the left black
    for mirrorable in (True, False):
        atlas = Atlas(
            sprite.expand(3, -1, -1, -1), torch.zeros(3) > 0, torch.full((3,), 0.5), torch.tensor([mirrorable])
        )
        composer = Composer(atlas, 16, Variety())
        spec = SceneSpec(things=(Thing(0),), background="blue")

        def draw(where: Placement, composer: Composer = composer, spec: SceneSpec = spec) -> torch.Tensor:
            return composer.compose_at([spec], [where], random.Random(0))[0, 0]

        upright = Placement(0.0, 0.0, 1.0)
        plain, flipped = draw(upright), draw(replace(upright, mirrored=True))
        assert plain[8, 12] > 0.9 > 0.1 > plain[8, 4]
        torch.testing.assert_close(flipped, plain.flip(1) if mirrorable else plain)
        turned = draw(replace(upright, turn_degrees=90.0))
        assert abs(turned[4, 8] - turned[12, 8]) > 0.8 and abs(turned[8, 4] - turned[8, 12]) < 0.1


def test_an_outline_is_white_and_only_before_a_background() -> None:
    sprite = torch.zeros(1, 16, 16, 4, dtype=torch.uint8)
    sprite[:, 4:12, 4:12, 3] = 255  # a black square with air around it
    atlas = Atlas(sprite.expand(3, -1, -1, -1), torch.zeros(3) > 0, torch.full((3,), 0.5), torch.tensor([False]))
    composer = Composer(atlas, 32, Variety(outline=1 / 16))
    plain, before = SceneSpec(things=(Thing(0),)), SceneSpec(things=(Thing(0),), background="blue")
    upright = Placement(0.0, 0.0, 1.0)
    outlined = replace(upright, outline=composer.variety.outline)
    assert {at.outline for at in composer.variety.every(before)} == {1 / 16}
    images = composer.compose_at([plain, before, before], [outlined, upright, outlined], random.Random(0))
    row = images[:, 2, 16]  # the blue of the middle row: the square is from 8 to 24
    torch.testing.assert_close(images[0], composer.compose_at([plain], [upright], random.Random(0))[0])
    assert (row[:, 9:23] < 0.01).all()  # the square itself is as it was
    assert (images[2, :, 16, 6:7] > 0.99).all()  # two pixels to its side the line
    torch.testing.assert_close(images[2, :, 16, :4], images[1, :, 16, :4])  # and further out the background


def test_the_model_card_counts_the_concepts_as_they_are() -> None:
    card = (Path(__file__).parents[2] / "MODEL_CARD.md").read_text(encoding="utf-8")
    concepts = load_concepts(include_extra=True)
    favoured, everyday = sum(each.weight > 1 for each in concepts), sum(not each.extra for each in concepts)
    for count in (f"{len(concepts):,} concepts", f"{everyday} concepts", f"the {favoured} marked `*`"):
        assert count in card
