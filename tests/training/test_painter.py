"""The decoder learns to paint what it will be told, and its critic what is drawn."""

import copy
import random
from typing import Any

import pytest
import torch

from training import recipe
from training.learning.critic import Critic, critic_losses
from training.learning.loop import load_average
from training.learning.transformer import encode_captions, told
from training.learning.vqgan import tokenize_images
from training.recipe import Recipe
from training.scenes.spec import SceneSpec


def test_decoder_finetuning_leaves_the_tokens_alone(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_average(trained.preset.work_dir / "vqgan.pt")
    assert trained.vqgan is trained.trunk
    said, painted = Recipe.said_of, []

    def noting(self: Recipe, specs: list[SceneSpec], *others: Any) -> torch.Tensor:
        painted.append(len(specs))
        return said(self, specs, *others)

    monkeypatch.setattr(Recipe, "said_of", noting)
    recipe.learn_to_paint(trained)
    assert painted == [3, 3]  # of four pictures in each step
    after = trained.vqgan.state_dict()
    assert trained.vqgan.config.resolution == 2 * trained.trunk.config.resolution
    assert torch.equal(after["encoder.mid.block_1.conv1.weight"], before["encoder.mid.block_1.conv1.weight"])
    assert torch.equal(after["quantize.embedding.weight"], before["quantize.embedding.weight"])
    grafted, trunk = after["decoder.up.2.block.0.conv2.weight"], before["decoder.up.1.block.0.conv2.weight"]
    assert not torch.equal(grafted, trunk)
    torch.testing.assert_close(grafted, trunk, atol=0.01, rtol=0.5)  # trained from there, not from nothing
    stored = load_average(trained.preset.work_dir / "decoder.pt")
    assert not torch.equal(stored["critic.verdict.weight"], Critic().verdict.weight)


def test_a_model_that_is_told_the_truth_says_what_it_expects_next(trained: Recipe) -> None:
    """A model that has learned one picture by heart says it; one that expects nothing says anything but the start."""
    model = copy.deepcopy(trained.transformer)
    ids, mask = encode_captions(trained.tokenizer, ["a red apple"] * 2, 32)
    truth = torch.randint(0, 12, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    anything = told(model, ids, mask, truth, random.Random(1))
    assert torch.equal(anything, told(model, ids, mask, truth, random.Random(1)))
    assert not torch.equal(anything, told(model, ids, mask, truth, random.Random(2)))
    assert set(anything.unique().tolist()) <= set(range(model.config.image_vocab_size)) and len(anything.unique()) > 6

    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    inputs = torch.nn.functional.pad(truth[:, :-1], (1, 0), value=model.config.decoder_start_token_id)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(ids, mask, inputs).flatten(0, 1), truth.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((told(model, ids, mask, truth, random.Random(1)) == truth).float().mean()) > 0.9


def test_a_decoder_learns_to_paint_what_the_transformer_says(trained: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three of four pictures; the transformer is told the captions and the true tokens of these very scenes."""
    rng = random.Random(3)
    specs = [trained.sampler.sample(rng) for _ in range(3)]
    plans = trained.small_composer.plan(specs, rng)
    own = tokenize_images(trained.trunk, trained.small_composer.paint(plans))
    heard: list[tuple[torch.Tensor, torch.Tensor]] = []

    def noting(_: object, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor, __: object) -> torch.Tensor:
        heard.append((ids, tokens))
        return tokens.flip(0)

    monkeypatch.setattr(recipe, "told", noting)
    assert torch.equal(trained.said_of(specs, plans, own, random.Random(1)), own.flip(0))
    (ids, tokens), captions = heard[0], random.Random(1)
    wanted, _ = encode_captions(trained.tokenizer, [trained.captioner.caption(spec, captions) for spec in specs], 32)
    assert torch.equal(ids, wanted) and torch.equal(tokens, own)
    monkeypatch.setattr(Recipe, "transformer_file", trained.preset.work_dir / "not yet")
    assert torch.equal(trained.said_of(specs, plans, own, random.Random(1)), own)


def test_what_a_critic_learns_is_not_what_its_painter_learns() -> None:
    critic = Critic()
    images, decoded = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)
    liked, judged = critic_losses(critic, images, decoded)
    liked.backward()
    assert decoded.grad is not None and all(weight.grad is None for weight in critic.parameters())
    painted = decoded.grad.clone()
    judged.backward()
    assert torch.equal(decoded.grad, painted)
    assert all(weight.grad is not None for weight in critic.parameters())
