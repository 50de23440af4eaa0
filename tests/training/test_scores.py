"""A score's interval and its control, and the setting that scores let pass."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dalle_server.request import SamplingParams
from tests.training.tiny import make_recipe
from training import recipe
from training.judging.evaluate import Question, Score, score, wilson
from training.recipe import Recipe
from training.scenes.spec import SceneSpec, Thing

ANSWERS, EACH = 4, 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return make_recipe(tmp_path_factory.mktemp("scores"))


def scored(tiny: Recipe, drawn: Tensor, seeds: int = 1) -> Score:
    """Of prompts in order, EACH with the answer 0, then 1, …; `drawn` are the answers that the pictures show."""
    prompts = [(SceneSpec(things=(Thing(i // EACH),)), str(i)) for i in range(ANSWERS * EACH)]

    def right(images: Tensor, spec: SceneSpec) -> Tensor:
        return images.mean((1, 2, 3)).round() == spec.things[0].concept

    def pictures(answers: Tensor) -> Tensor:
        side = tiny.small_composer.image_px
        return answers.float().view(-1, 1, 1, 1).expand(-1, 3, side, side)

    return score(
        Question("answer", prompts, right),
        lambda captions, seed: pictures(drawn),
        lambda plans: pictures(torch.full((len(plans),), 9)),
        tiny.small_composer,
        seeds=seeds,
    )


def test_the_control_is_what_other_prompts_would_score(tiny: Recipe) -> None:
    found = scored(tiny, torch.arange(ANSWERS).repeat_interleave(EACH))
    assert found.score == 1.0 and found.ceiling_reconstructions == 0.0
    assert found.control == pytest.approx((EACH - 1) / (ANSWERS * EACH - 1), abs=0.04)


def test_more_seeds_of_the_same_prompts_do_not_narrow_an_interval(tiny: Recipe) -> None:
    half = torch.arange(ANSWERS).repeat_interleave(EACH)
    half[::2] = 9
    found = scored(tiny, half, seeds=3)
    assert (found.score, found.seeds) == (0.5, 3)
    assert (found.low, found.high) == pytest.approx(wilson(0.5, ANSWERS * EACH))


def test_the_warmest_setting_is_taken_that_few_prompts_cannot_tell_from_the_best(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third is asked: the mean of 100 and 3 is known within 0.15, and the 100 alone would say 0.025."""
    spec = SceneSpec(things=(Thing(0),))
    names = {"single object, top-1": 300, "background colour": 9}
    asked = [Question(name, [(spec, name)] * count, lambda images, _: images > 0) for name, count in names.items()]
    monkeypatch.setitem(vars(tiny), "questions", asked)
    grid = [SamplingParams(temperature=t) for t in (0.2, 0.5, 1.0)]
    shares = {0.2: 0.9, 0.5: 0.8, 1.0: 0.6}
    monkeypatch.setattr(recipe, "sampling_grid", lambda: grid)
    monkeypatch.setattr(recipe, "_exported", lambda *_: tmp_path / "draft")
    monkeypatch.setattr(recipe, "right_share", lambda question, draw: shares[draw])
    monkeypatch.setattr(recipe, "through", lambda engine, device, sampling: sampling.temperature)
    monkeypatch.setattr(recipe, "served", nullcontext)
    (tmp_path / "draft").mkdir()
    recipe.choose_sampling(tiny)
    assert json.loads(tiny.sampling_file.read_text())["temperature"] == 0.5
