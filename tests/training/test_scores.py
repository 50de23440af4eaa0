"""What is asked and how often, a score's interval and its control, and the setting that scores let pass."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dalle_server.request import SamplingParams
from tests.training.tiny import make_recipe
from training import recipe
from training.__main__ import parsed
from training.judging.evaluate import Asking, Question, Score, score, wilson
from training.judging.sheets import SHEETS
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


def test_how_much_is_asked_stands_in_the_command_of_a_stage_that_scores(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed(["evaluate", "--seeds", "2", "--every", "3"]).asking == Asking(2, 3)
    assert parsed(["compare", "--things", "all"]).asking == Asking(things="all")
    assert parsed([]).asking == parsed(["vqgan"]).asking == Asking()
    for wrong in (
        ["choose", "--every", "3"],
        ["--seeds", "2"],
        ["evaluate", "--every", "0"],
        ["compare", "--seeds", "x"],
    ):
        with pytest.raises(SystemExit):
            parsed(wrong)
    assert "only of evaluate, compare, formats, not of choose" in capsys.readouterr().err


def test_of_each_question_every_so_manyth_prompt_is_asked() -> None:
    spec = SceneSpec(things=(Thing(0),))
    question = Question("count", [(spec, str(i)) for i in range(7)], lambda images, _: images > 0)
    assert [text for _, text in Asking(every=3).thinned([question])[0].prompts] == ["0", "3", "6"]
    with pytest.raises(ValueError, match="--every 7 leaves fewer than two prompts of count"):
        Asking(every=7).thinned([question])


def test_a_recipe_asks_about_everyday_things_alone_when_told_to(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Recipe(replace(tiny.preset, include_extra=True), Asking(things="everyday"))
    for name in ("small_composer", "classifier"):
        monkeypatch.setattr(Recipe, name, None)
    extra = {i for i, concept in enumerate(made.concepts) if concept.extra}
    assert extra and not any(spec.things[0].concept in extra for spec, _ in made.questions[0].prompts)
    everything = Recipe(made.preset)
    assert any(spec.things[0].concept in extra for spec, _ in everything.questions[0].prompts)


def test_the_fifty_prompts_are_fifty_that_no_other_sheet_shows() -> None:
    others = {prompt for name, prompts in SHEETS.items() if name != "fifty" for prompt in prompts}
    assert len(set(SHEETS["fifty"]) - others) == 50 == len(SHEETS["fifty"])
