"""Scenes put together from tokens: a thing is the same ones wherever it stands, and the rest is the background's."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.tiny import PRESET, make_recipe
from training import recipe
from training.learning.loop import load_average
from training.learning.stamps import Stamps
from training.learning.vqgan import tokenize_images
from training.recipe import Recipe
from training.scenes.composer import Plan
from training.scenes.concepts import load_concepts
from training.scenes.held_out import load_held_out
from training.scenes.spec import AMONG_FEW, Layer, Mixture, SceneSampler, SceneSpec, Thing, layout

STAMPED = PRESET.replace("processes = 1", "processes = 1\nstamps = true").replace(
    "turn_degrees = 5.0", "outline = 0.06"
)
UPRIGHT = Layer(3, None, 0.5, 0.5, AMONG_FEW)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = make_recipe(tmp_path_factory.mktemp("stamped"), STAMPED)
    recipe.learn_image_tokens(made)
    return made


@pytest.fixture(scope="module")
def stamps(tiny: Recipe) -> Stamps:
    assert tiny.stamps is not None
    return tiny.stamps


def grid(stamps: Stamps, *plans: Plan) -> Tensor:
    return stamps.tokens(list(plans)).view(-1, 8, 8)


def test_a_thing_alone_in_the_middle_of_the_page_is_all_that_the_encoder_says(tiny: Recipe, stamps: Stamps) -> None:
    plans = [Plan("plain", 0, (UPRIGHT,)), Plan("plain", 0, (replace(UPRIGHT, colour="red", side=0.75),))]
    wanted = tokenize_images(tiny.trunk, tiny.token_composer.paint(plans))
    assert torch.equal(stamps.tokens(plans), wanted)


def test_a_thing_is_the_same_tokens_in_any_place_and_company(stamps: Stamps) -> None:
    left, right = replace(UPRIGHT, x=0.25), replace(UPRIGHT, x=0.75, sprite=5)
    alone, together, before, below = grid(
        stamps,
        Plan("plain", 0, (left,)),
        Plan("plain", 0, (right, left)),
        Plan("blue", 0, (replace(left, outline=0.06), right)),
        Plan("plain", 0, (replace(left, y=0.75),)),
    )
    assert torch.equal(alone[3:5, 1:3], together[3:5, 1:3])
    assert torch.equal(alone[3:5, 1:3], before[3:5, 1:3])
    assert torch.equal(alone[3:5, 1:3], below[5:7, 1:3])
    assert torch.equal(together[3:5, 5:7], before[3:5, 5:7])


def test_where_nothing_stands_are_the_backgrounds_own_tokens(stamps: Stamps) -> None:
    one, other, elsewhere = grid(
        stamps,
        Plan("blue", 0, (replace(UPRIGHT, x=0.25),)),
        Plan("blue", 0, (replace(UPRIGHT, x=0.25, sprite=9),)),
        Plan("red", 0, (replace(UPRIGHT, x=0.25),)),
    )
    assert torch.equal(one[:, 5:], other[:, 5:])
    assert not torch.equal(one[:, 5:], elsewhere[:, 5:])


def test_a_thing_covers_the_tokens_it_stands_on(tiny: Recipe) -> None:
    cover = tiny.token_composer.cover([UPRIGHT, replace(UPRIGHT, x=0.25, outline=0.06)])
    assert cover.shape == (2, 1, 16, 16)
    assert cover[0, 0, 8, 8] == 1 and cover[0, 0, 8, 2] == 0
    assert cover[1, 0, 8, 3] == 1 and cover[1, 0, 8, 9] == 0  # its white line is none of it


def test_things_among_many_do_not_cut_each_other(tiny: Recipe) -> None:
    """On a grid of ten tokens a side, nano's: every token of a thing is its own."""
    for count in range(2, 7):
        spec = SceneSpec(things=(Thing(0),), count=count)
        variety = replace(tiny.preset.variety, grid=10)
        layers = layout(spec, tiny.atlas, variety.every(spec)[0], 10)
        covered = [
            {(x, y) for x in range(10) for y in range(10)
             if abs(x + 0.5 - 10 * layer.x) < 5 * layer.side and abs(y + 0.5 - 10 * layer.y) < 5 * layer.side}
            for layer in layers
        ]  # fmt: skip
        assert all(len(tokens) == round(10 * layer.side) ** 2 for tokens, layer in zip(covered, layers, strict=True))
        assert len(set.union(*covered)) == sum(map(len, covered))


def test_turned_things_are_no_stamps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="take turn_degrees out"):
        make_recipe(tmp_path, STAMPED.replace("outline = 0.06", "turn_degrees = 5.0"))


def test_every_stage_goes_by_the_stamps(tiny: Recipe, stamps: Stamps, tmp_path: Path) -> None:
    recipe.write_tokens(tiny)
    recipe.learn_to_paint(tiny)
    plain = make_recipe(tmp_path, STAMPED.replace("stamps = true", ""))
    (plain.preset.work_dir / "vqgan.pt").write_bytes((tiny.preset.work_dir / "vqgan.pt").read_bytes())
    recipe.learn_to_paint(plain)
    stamped, encoded = (load_average(made.preset.work_dir / "decoder.pt") for made in (tiny, plain))
    name = "vqgan.decoder.conv_in.weight"
    assert not torch.equal(stamped[name], encoded[name])
    plans = tiny.token_composer.plan([tiny.sampler.sample(random.Random(1)) for _ in range(4)], random.Random(1))
    assert torch.equal(tiny.tokens_of(plans), stamps.tokens(plans))
    assert torch.equal(plain.tokens_of(plans), tokenize_images(plain.trunk, plain.token_composer.paint(plans)))
    assert tiny.decoded(plans).shape == (4, 3, 32, 32)


def test_other_scenes_have_other_tokens_folders(tiny: Recipe, tmp_path: Path) -> None:
    """Scenes follow from numbers: tokens kept from another mixture would be captioned as what they are not."""
    shutil.copy(tiny.preset.work_dir / "vqgan.pt", make_recipe(tmp_path, STAMPED).preset.work_dir)
    others = ["", "[mixture]\npairs = 0.5\n", "[mixture]\neveryday = 0.5\n"]
    presets = [STAMPED.replace("[vqgan]\n", f"{other}[vqgan]\n") for other in others]
    presets.append(STAMPED.replace("stamps = true", ""))
    assert len({make_recipe(tmp_path, preset).tokens_folder for preset in presets}) == 4
    assert make_recipe(tmp_path, STAMPED).tokens_folder == make_recipe(tmp_path, STAMPED).tokens_folder


def test_composed_scenes_are_of_everyday_things_as_far_as_the_mixture_says() -> None:
    concepts = load_concepts(include_extra=True)
    rng = random.Random(0)
    for share in (0.0, 1.0):
        sampler = SceneSampler(concepts, load_held_out(concepts), Mixture(everyday=share))
        specs = [sampler.sample(rng) for _ in range(2000)]
        composed = [s for s in specs if replace(s, style=None) != SceneSpec(things=(Thing(s.things[0].concept),))]
        extra = [any(concepts[thing.concept].extra for thing in spec.things) for spec in composed]
        assert (sum(extra) > 300) if share == 0 else not any(extra)
        assert sum(concepts[spec.things[0].concept].extra for spec in specs if spec not in composed) > 100
