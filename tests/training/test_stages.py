"""Every stage runs a few steps on invented artwork, resumes exactly, and ends in a checkpoint that the server opens."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle_server.checkpoints import open_checkpoint
from dalle_server.request import GenerationRequest, SamplingParams
from dalle_server.text import TextTokenizer
from tests.training.tiny import PRESET, make_recipe
from training import recipe
from training.export import export
from training.judging import compare, evaluate, formats
from training.judging.evaluate import Asking, Question
from training.judging.judge import Judge
from training.judging.served import served, through
from training.learning import fsq, loop
from training.learning.compiled import Doubled, compiled_loss
from training.learning.loop import load_average
from training.learning.tokens import load_tokens
from training.learning.transformer import TEXT_TABLE, build_model, encode_captions, stretched
from training.preset import Schedule, load_preset
from training.recipe import Recipe
from training.restore import restore
from training.scenes.artwork import STYLES
from training.scenes.spec import SceneSampler, SceneSpec, Thing


def test_training_moves_the_weights_and_counts_its_steps(trained: Recipe) -> None:
    for stage in ("vqgan", "transformer"):
        state = torch.load(trained.preset.work_dir / f"{stage}.pt", weights_only=True)
        assert state["step"] == 4
        assert all(torch.isfinite(value).all() for value in state["average"].values())


class Killed(Exception):
    pass


def test_a_resumed_run_equals_an_uninterrupted_one(
    trained: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halved = make_recipe(tmp_path)
    progress = Schedule.progress

    def killed_after_two_steps(self: Schedule, step: int, elapsed_s: float) -> float:
        if step == 2:
            raise Killed
        return progress(self, step, elapsed_s)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop, "SAVE_EVERY_S", -1.0)  # after every step
        patched.setattr(Schedule, "progress", killed_after_two_steps)
        recipe.learn_image_tokens(halved)
    assert torch.load(halved.preset.work_dir / "vqgan.pt", weights_only=True)["step"] == 2

    recipe.learn_image_tokens(halved)
    whole, resumed = (load_average(made.preset.work_dir / "vqgan.pt") for made in (trained, halved))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_exported_checkpoint_opens_and_holds_the_trained_weights(trained: Recipe, tmp_path: Path) -> None:
    sampling = SamplingParams(condition_scale=2.0, temperature=0.5, top_k=8, top_p=1.0)
    path = export(trained.transformer, trained.vqgan, trained.tokenizer_file, sampling, tmp_path / "nano")
    opened = open_checkpoint(path)
    assert opened.config.sampling == sampling
    assert json.loads((path / "config.json").read_text())["name"] == "nano"
    for module, stored in ((trained.transformer, opened.transformer), (trained.vqgan, opened.vqgan)):
        for name, value in module.state_dict().items():
            np.testing.assert_allclose(np.asarray(stored[name], dtype=np.float32), value.numpy(), atol=2e-3, rtol=1e-3)


def test_training_goes_on_from_an_exported_checkpoint(trained: Recipe, tmp_path: Path) -> None:
    path = export(trained.transformer, trained.vqgan, trained.tokenizer_file, SamplingParams(), tmp_path / "nano")
    later = make_recipe(tmp_path)
    with pytest.raises(ValueError, match="under the preset that made it"):
        restore(path, later.preset.work_dir, image_length=later.preset.image_length + 1)
    restore(path, later.preset.work_dir, image_length=later.preset.image_length)
    assert later.vqgan.config == trained.vqgan.config  # the one that was served also makes the tokens
    recipe.write_tokens(later)
    recipe.learn_to_draw(later)
    state = torch.load(later.preset.work_dir / "transformer.pt", weights_only=True)
    assert state["step"] == 4
    before, after = trained.transformer.state_dict(), state["module"]
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 0.1  # near, not from nothing
    with pytest.raises(FileExistsError):
        restore(path, later.preset.work_dir, image_length=later.preset.image_length)


def test_a_restored_run_needs_no_base(trained: Recipe, tmp_path: Path) -> None:
    path = export(trained.transformer, trained.vqgan, trained.tokenizer_file, SamplingParams(), tmp_path / "nano")
    (tmp_path / "base.toml").write_text(PRESET)
    later = make_recipe(tmp_path, PRESET.replace("[run]", f'[run]\nbase = "{tmp_path / "base.toml"}"', 1))
    restore(path, later.preset.work_dir, image_length=later.preset.image_length)
    recipe.write_tokens(later)
    recipe.learn_to_draw(later)
    assert torch.load(later.preset.work_dir / "transformer.pt", weights_only=True)["step"] == 4
    assert not list((tmp_path / "work" / "base").glob("*.pt"))


def test_tokens_are_of_the_scenes_asked_for(trained: Recipe, tmp_path: Path) -> None:
    longer = make_recipe(tmp_path, PRESET.replace("num_scenes = 40", "num_scenes = 50"))
    shutil.copy(trained.preset.work_dir / "vqgan.pt", longer.preset.work_dir)
    shutil.copytree(trained.tokens_folder, longer.tokens_folder)  # a file of 40, which ought to hold 50
    assert longer.tokens_folder.name == trained.tokens_folder.name
    with pytest.raises(ValueError, match="40 scenes, not of 50: run the stage tokens"):
        recipe.learn_to_draw(longer)
    recipe.write_tokens(longer)
    assert len(load_tokens(50, longer.tokens_folder)) == 50


def test_tokens_are_not_taken_for_those_of_another_encoder_or_other_things(trained: Recipe, tmp_path: Path) -> None:
    other = make_recipe(tmp_path)
    state = torch.load(trained.preset.work_dir / "vqgan.pt", weights_only=True)
    torch.save(state, other.preset.work_dir / "vqgan.pt")
    assert other.tokens_folder.name == trained.tokens_folder.name
    other.__dict__["concepts"] = trained.concepts[:-1]
    assert other.tokens_folder.name != trained.tokens_folder.name
    later = make_recipe(tmp_path)
    state["average"]["quant_conv.bias"] += 1
    torch.save(state, later.preset.work_dir / "vqgan.pt")
    assert later.tokens_folder.name != trained.tokens_folder.name


def test_the_server_reads_captions_as_the_training_did(trained: Recipe, tmp_path: Path) -> None:
    path = export(trained.transformer, trained.vqgan, trained.tokenizer_file, SamplingParams(), tmp_path / "nano")
    served = TextTokenizer.from_checkpoint(open_checkpoint(path))
    for caption in ("a red apple", "two cats on a blue background", "a star below the moon"):
        ids, mask = encode_captions(trained.tokenizer, [caption], 32)
        assert served.encode(caption).ids[: ids.shape[1]].tolist() == ids[0].tolist()
        assert served.encode(caption).length == int(mask.sum())


def test_a_checkpoint_is_judged_by_what_its_clients_get(trained: Recipe, tmp_path: Path) -> None:
    path = export(trained.transformer, trained.vqgan, trained.tokenizer_file, SamplingParams(), tmp_path / "nano")
    captions = ["a red apple", "a cat"]
    with served(path) as engine:
        draw = through(engine, trained.device, SamplingParams(top_k=1))
        first = draw(captions, 1)
        alone = engine.submit(GenerationRequest.of("a cat", seed=10_001, sampling=SamplingParams(top_k=1)))
        assert first.shape == (2, 3, *[trained.vqgan.config.resolution] * 2)
        assert torch.equal(first[1], torch.from_numpy(alone.result()[0].pixels).permute(2, 0, 1) / 255)
        own = through(engine, trained.device)
        assert not torch.equal(first, own(captions, 1)) and not torch.equal(own(captions, 1), own(captions, 2))


def test_sampling_is_chosen_exported_and_scored(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the settings in the grid the warmest that scores as well as the best: here all of them are right."""
    spec = SceneSpec(things=(Thing(0),))
    asked = [
        Question(name, [(spec, "a red apple"), (spec, "an apple")], lambda images, _: images.mean((1, 2, 3)) > 0)
        for name in ("single object, top-1", "background colour", "count")
    ]
    grid = [SamplingParams(temperature=t, top_k=8, top_p=0.9, condition_scale=1.0) for t in (0.5, 1.0, 0.2)]
    monkeypatch.setattr(recipe, "sampling_grid", lambda: grid)
    monkeypatch.setattr(evaluate, "SCENES_RECONSTRUCTED", 4)
    monkeypatch.setattr(recipe, "SHEETS", {"few": ["a cat"], "others": ["a dog", "a car"]})
    monkeypatch.setitem(vars(trained), "questions", asked)
    for stage in ("choose", "export", "evaluate"):
        recipe.STAGES[stage](trained)
    assert open_checkpoint(trained.checkpoint).config.sampling == grid[1]
    assert not (trained.preset.work_dir / "draft").exists()
    scores = json.loads((trained.preset.work_dir / "scores.json").read_text())
    assert [(row["name"], row["score"]) for row in scores["scores"]] == [(question.name, 1.0) for question in asked]
    assert scores["reconstruction"]["seeds_differ"] > 0
    assert {file.stem for file in trained.preset.work_dir.glob("*.png")} >= {"few", "others"}
    assert {(row["prompts"], row["seeds"]) for row in scores["scores"]} == {(2, 3)}
    monkeypatch.setitem(
        vars(trained), "questions", [replace(question, prompts=question.prompts * 3) for question in asked]
    )
    monkeypatch.setattr(trained, "asking", Asking(seeds=2, every=3))
    recipe.evaluate(trained)
    scores = json.loads((trained.preset.work_dir / "scores.json").read_text())
    assert {(row["prompts"], row["seeds"]) for row in scores["scores"]} == {(2, 2)}


def test_weights_from_before_the_run_went_on_are_not_judged(trained: Recipe) -> None:
    recipe.export_checkpoint(trained)
    exported = trained.checkpoint.stat().st_mtime
    weights = trained.transformer_file
    trained_at = weights.stat().st_mtime
    os.utime(weights, (exported + 1, exported + 1))
    for judged in (recipe.evaluate, compare.compare, formats.compare_formats):
        with pytest.raises(RuntimeError, match=r"older than transformer\.pt: run the stage export again"):
            judged(trained)
    os.utime(weights, (trained_at, trained_at))


def test_two_checkpoints_are_asked_the_same(trained: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = trained.checkpoint
    for path, top_k in ((own, 1), (tmp_path / "shipped", 0)):
        export(trained.transformer, trained.vqgan, trained.tokenizer_file, SamplingParams(top_k=top_k), path)
    grids: list[int] = []
    things: list[bool] = []

    def asked(_: SceneSampler, judge: Judge, *, everyday: bool) -> list[Question]:
        assert set(judge.composer.variety.styles) == set(STYLES)
        things.append(everyday)
        grids.append(judge.composer.variety.grid)
        spec = SceneSpec(things=(Thing(0),))
        return [Question("bright", [(spec, "a red apple")] * 2, lambda images, _: images.mean((1, 2, 3)) > 0)]

    monkeypatch.setattr(compare, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(compare, "SHEETS", {"few": ["a cat"]})
    monkeypatch.setattr(compare, "questions", asked)
    monkeypatch.setitem(vars(trained), "classifier", None)  # of which these questions make no use
    compare.compare(trained)
    results = json.loads((trained.preset.work_dir / "compare.json").read_text())
    assert list(results) == ["shipped", "this run"] and grids == [trained.preset.variety.grid] * 2
    assert all([row["name"] for row in rows] == ["seeds differ", "bright"] for rows in results.values())
    assert all(rows[1]["score"] == 1.0 for rows in results.values())
    greedy, free = (results[name][0]["score"] for name in ("this run", "shipped"))
    assert greedy == 0 < free  # each is drawn by its own defaults
    assert things == [True, True] and results["shipped"][1]["seeds"] == 3
    monkeypatch.setattr(trained, "asking", Asking(seeds=1, things="all"))
    compare.compare(trained)
    results = json.loads((trained.preset.work_dir / "compare.json").read_text())
    assert things[2:] == [False, False] and results["shipped"][1]["seeds"] == 1


def test_a_checkpoint_is_told_by_renders_on_its_own_grid(trained: Recipe) -> None:
    composer = compare.renders(trained, 5)
    tinted = SceneSpec(things=(Thing(0, "red"),))
    places = composer.variety.every(tinted)
    assert {at.style for at in places} == set(STYLES) and {at.dx for at in places} == {-0.2, 0.0, 0.2}
    assert composer.image_px == trained.preset.vqgan.resolution


def test_formats_are_compared_through_the_runner_that_serves(trained: Recipe) -> None:
    sampling = SamplingParams(condition_scale=2.0, temperature=1.0, top_k=12, top_p=1.0)
    export(trained.transformer, trained.vqgan, trained.tokenizer_file, sampling, trained.preset.work_dir / "checkpoint")
    spec = SceneSpec(things=(Thing(0),))
    asked = Question(formats.ASKED[0], [(spec, "a red apple")] * 2, lambda images, _: images.mean((1, 2, 3)) > 0)
    vars(trained)["questions"] = [asked, replace(asked, name="not asked here")]
    formats.compare_formats(trained)
    results = json.loads((trained.preset.work_dir / "formats.json").read_text())
    assert results["fp32"]["logits_rms_error"] == 0.0 and results["fp32"]["same_sampled"] == 1.0
    assert 0 < results["int8"]["logits_rms_error"] < 0.2
    assert [row["name"] for row in results["int8"]["scores"]] == [formats.ASKED[0]]


def test_fsq_is_the_nearest_entry_of_its_codebook(trained: Recipe) -> None:
    z = torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(1)) * 3 - 1.5
    nearest = trained.vqgan.quantize.nearest(z)
    codes = trained.vqgan.quantize.embedding(nearest).view(2, 3, 3, 2).permute(0, 3, 1, 2)
    torch.testing.assert_close(fsq.quantize(z, (4, 3)), codes)


def test_a_larger_grid_of_places_begins_as_the_smaller_one_stretched() -> None:
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    places = torch.stack([row.flatten(), column.flatten()], 1)  # (16, 2)
    larger = stretched(places, 4, 8).view(8, 8, 2)
    torch.testing.assert_close(larger[:, 3, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    torch.testing.assert_close(larger[3, :, 1], larger[:, 3, 0])
    torch.testing.assert_close(stretched(places, 4, 4), places)


def test_the_first_steps_of_a_vqgan_may_be_on_smaller_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_recipe(tmp_path, PRESET.replace("[run]", "[run]\nfirst_px = 8\nfirst_steps = 3"))
    seen: list[int] = []
    quantize = fsq.quantize

    def noting(z: torch.Tensor, levels: tuple[int, ...]) -> torch.Tensor:
        seen.append(z.shape[-1])
        return quantize(z, levels)

    monkeypatch.setattr(fsq, "quantize", noting)
    recipe.learn_image_tokens(made)
    assert seen == [4, 4, 4, 8]


def test_a_miscompiled_loss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(3, 1)
    example = (torch.randn(5, 3),)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: -function(x))
    with pytest.raises(RuntimeError, match="miscompiles"):
        compiled_loss(loss, model, example)


def test_doubling_equals_nearest_interpolation() -> None:
    conv = torch.nn.Conv2d(2, 2, 1)
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(
        Doubled(conv)(x), conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    )


def test_interrupted_tokens_are_gone_on_with(trained: Recipe, tmp_path: Path) -> None:
    shards = sorted(trained.tokens_folder.glob("*.npy"))
    again = make_recipe(tmp_path)
    again.__dict__["trunk"] = trained.trunk
    again.tokens_folder.mkdir()
    marked = np.full_like(np.load(shards[0]), 7)
    np.save(again.tokens_folder / shards[0].name, marked)
    recipe.write_tokens(again)
    assert (np.load(again.tokens_folder / shards[0].name) == marked).all()  # kept, not made again
    (again.tokens_folder / shards[0].name).unlink()
    recipe.write_tokens(again)
    assert (np.load(again.tokens_folder / shards[0].name) == np.load(shards[0])).all()


def test_a_preset_goes_on_from_its_base(trained: Recipe, tmp_path: Path) -> None:
    work = trained.preset.work_dir.parent
    (tmp_path / "wider.toml").write_text(
        PRESET.replace("[run]", f'[run]\nbase = "{work.parent / "tiny.toml"}"').replace(
            "vocab_size = 400", "vocab_size = 500"
        )
    )
    wider = Recipe(load_preset(str(tmp_path / "wider.toml"), work))
    recipe.learn_text_tokens(wider)
    model = build_model(wider.preset, wider.tokenizer)
    before, after = trained.transformer.state_dict(), model.state_dict()
    assert len(after[TEXT_TABLE]) == 500 and len(before[TEXT_TABLE]) == 400
    assert all(torch.equal(after[name], before[name]) for name in before if name != TEXT_TABLE)
    shared = [token for token in wider.tokenizer.get_vocab() if trained.tokenizer.token_to_id(token) is not None]
    assert len(shared) > 300
    for token in shared:
        old, new = (made.tokenizer.token_to_id(token) for made in (trained, wider))
        assert torch.equal(after[TEXT_TABLE][new], before[TEXT_TABLE][old]), token
    split = next(t for t in wider.tokenizer.get_vocab() if trained.tokenizer.token_to_id(t) is None)
    pieces = trained.tokenizer.encode(split.replace("Ġ", " "), add_special_tokens=False).ids
    assert len(pieces) > 1
    torch.testing.assert_close(
        after[TEXT_TABLE][wider.tokenizer.token_to_id(split)], before[TEXT_TABLE][pieces].mean(0)
    )
