"""Every stage runs a few steps on invented artwork, resumes exactly, and ends in a checkpoint that the server opens."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle_server.checkpoints import open_checkpoint
from dalle_server.generation import SamplingParams
from dalle_server.text import TextTokenizer
from training import formats, fsq, loop, recipe
from training.artwork import STYLES, Atlas
from training.compiled import Doubled, compiled_loss
from training.evaluate import Question
from training.export import export
from training.loop import load_average
from training.preset import Schedule, load_preset
from training.recipe import Recipe
from training.restore import restore
from training.sample import decode_images, sample_tokens
from training.scenes import SceneSpec, Thing, placements
from training.transformer import encode_captions

PRESET = """
[run]
seed = 3
include_extra = false
sprite_px = 16
text_vocab_size = 400
caption_dropout = 0.1
processes = 1
[vqgan]
resolution = 16
ch = 4
ch_mult = [1, 2]
num_res_blocks = 1
attn_resolutions = []
num_groups = 2
z_channels = 8
fsq_levels = [4, 3]
[vqgan_schedule]
batch = 4
learning_rate = 1e-3
steps = 4
[decoder_schedule]
batch = 4
learning_rate = 1e-3
steps = 2
[transformer]
d_model = 32
encoder_layers = 1
decoder_layers = 1
encoder_attention_heads = 2
decoder_attention_heads = 2
encoder_ffn_dim = 32
decoder_ffn_dim = 32
max_text_length = 32
[transformer_schedule]
batch = 4
learning_rate = 1e-3
steps = 4
"""


def make_recipe(folder: Path, preset: str = PRESET) -> Recipe:
    """A recipe in its own folder, on invented artwork: discs whose colour depends on the concept."""
    file = folder / "tiny.toml"
    file.write_text(preset)
    made = Recipe(load_preset(str(file), folder / "work"))
    num = len(made.concepts)
    disc = torch.linspace(-1, 1, 16).square()
    alpha = (disc[:, None] + disc[None] < 1).float().mul(255).byte()
    colours = torch.randint(0, 255, (len(STYLES) * num, 1, 1, 3), generator=torch.Generator().manual_seed(0))
    sprites = torch.cat([colours.expand(-1, 16, 16, -1).byte(), alpha.expand(len(colours), -1, -1)[..., None]], -1)
    atlas = Atlas(sprites, torch.ones(len(colours), dtype=torch.bool), torch.full((len(colours),), 0.5), num)
    made.__dict__["atlas"] = atlas  # what the cached property would have rendered
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = make_recipe(tmp_path_factory.mktemp("recipe"))
    recipe.learn_text_tokens(made)
    recipe.learn_image_tokens(made)
    recipe.learn_to_draw(made)
    return made


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


def test_decoder_finetuning_leaves_the_tokens_alone(trained: Recipe) -> None:
    before = load_average(trained.preset.work_dir / "vqgan.pt")
    assert torch.equal(trained.vqgan.decoder.conv_out.weight, before["decoder.conv_out.weight"])
    recipe.learn_to_paint(trained)
    after = load_average(trained.preset.work_dir / "decoder.pt")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert torch.equal(trained.vqgan.decoder.conv_out.weight, after["decoder.conv_out.weight"])


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
    restore(path, later.preset.work_dir)
    recipe.learn_to_draw(later)
    state = torch.load(later.preset.work_dir / "transformer.pt", weights_only=True)
    assert state["step"] == 4
    before, after = trained.transformer.state_dict(), state["module"]
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 0.1  # near, not from nothing
    with pytest.raises(FileExistsError):
        restore(path, later.preset.work_dir)


def test_the_server_reads_captions_as_the_training_did(trained: Recipe, tmp_path: Path) -> None:
    path = export(trained.transformer, trained.vqgan, trained.tokenizer_file, SamplingParams(), tmp_path / "nano")
    served = TextTokenizer.from_checkpoint(open_checkpoint(path))
    for caption in ("a red apple", "two cats on a blue background", "a star below the moon"):
        ids, mask = encode_captions(trained.tokenizer, [caption], 32)
        assert served.encode(caption).ids[: ids.shape[1]].tolist() == ids[0].tolist()
        assert served.encode(caption).length == int(mask.sum())


def test_sampling_is_a_function_of_the_seed(trained: Recipe) -> None:
    settings = SamplingParams(condition_scale=2.0, temperature=1.0, top_k=12, top_p=1.0)
    args = trained.transformer, trained.tokenizer, ["a red apple", "a cat"], settings
    first, again, other = sample_tokens(*args, 1), sample_tokens(*args, 1), sample_tokens(*args, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    pictures = decode_images(trained.vqgan, first)
    assert pictures.shape == (2, 3, 16, 16)


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


def test_placements_leave_things_inside_the_picture() -> None:
    for where in placements(SceneSpec(things=(Thing(0),))):
        assert abs(where.dx) + where.side / 2 <= 0.5
        assert abs(where.dy) + where.side / 2 <= 0.5


def test_scenes_show_the_colours_they_are_asked_for(trained: Recipe) -> None:
    spec = SceneSpec(things=(Thing(0, "red"),), background="blue", position="left")
    image = trained.composer.compose([spec], random.Random(0))[0]
    red, _, blue = image[:, 8, 4]
    assert red > 0.5 > blue
    red, _, blue = image[:, 8, 12]
    assert blue > 0.5 > red


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
