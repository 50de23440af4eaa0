"""DalleBart's own contracts: true sizes, gradients, and a cache in which every row stands where it likes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.dalle_bart import DalleBart

MANIFESTS = Path(__file__).parents[1] / "data" / "parity" / "manifests"


@pytest.mark.parametrize(("name", "num_params"), [("mini-1", 437_833_712), ("mega-1", 2_587_521_024)])
def test_true_sizes(name, num_params):
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    with torch.device("meta"):
        model = DalleBart(DalleBartConfig.from_dict(manifest["config"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_params == manifest["num_params"]


def random_text(config: DalleBartConfig, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(config.encoder_vocab_size, (num_rows, config.max_text_length))
    lengths = torch.randint(2, config.max_text_length + 1, (num_rows, 1))
    return ids, torch.arange(config.max_text_length) < lengths


def test_every_parameter_learns(transformer_config):
    torch.manual_seed(0)
    model = DalleBart(transformer_config)
    text, mask = random_text(transformer_config, 4)
    codes = torch.randint(transformer_config.image_vocab_size, (4, transformer_config.image_length))
    start = torch.full((4, 1), transformer_config.decoder_start_token_id)
    inputs = torch.cat([start, codes[:, :-1]], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model(text, mask, inputs).flatten(0, 1), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_padding_does_not_matter(transformer_config):
    torch.manual_seed(1)
    model = DalleBart(transformer_config)
    text, mask = random_text(transformer_config, 1)
    mask[:, 4:] = False
    inputs = torch.randint(transformer_config.image_vocab_size, (1, 5))
    expected = model(text, mask, inputs)
    text[:, 4:] = (text[:, 4:] + 1) % transformer_config.encoder_vocab_size
    torch.testing.assert_close(model(text, mask, inputs), expected)


def test_scale_embedding_multiplies_tokens_only(transformer_config):
    plain = DalleBart(transformer_config)
    scaled = DalleBart(replace(transformer_config, scale_embedding=True))
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        scaled.encoder.embed_tokens.weight /= transformer_config.d_model**0.5
        scaled.decoder.embed_tokens.weight /= transformer_config.d_model**0.5
    text, mask = random_text(transformer_config, 2)
    inputs = torch.randint(transformer_config.image_vocab_size, (2, 5))
    torch.testing.assert_close(scaled(text, mask, inputs), plain(text, mask, inputs))


@torch.no_grad()
def test_rows_at_their_own_positions_equal_teacher_forcing(transformer_config):
    """Three rows that begin at different times, in rows that someone used before, with strangers in between."""
    torch.manual_seed(2)
    config, last = transformer_config, transformer_config.image_length - 1
    model = DalleBart(config)
    text, mask = random_text(config, 3)
    inputs = torch.randint(config.image_vocab_size, (3, config.image_length))
    expected = model(text, mask, inputs)

    cache = model.new_cache(6)
    for tensor in (cache.keys, cache.values, cache.cross_keys, cache.cross_values):
        tensor.normal_()
    rows, starts = torch.tensor([4, 0, 3]), torch.tensor([0, 3, 5])
    cross = model.decoder.cross_keys_values(model.encode(text, mask))
    logits = torch.zeros_like(expected)
    for time in range(config.image_length + int(starts.max())):
        if (begins := starts == time).any():
            cache.reset(rows[begins], cross[0][:, begins], cross[1][:, begins], mask[begins])
        at = (time - starts).clamp(0, last)
        ids, positions = torch.zeros(6, dtype=torch.long), torch.full((6,), time % 7)
        ids[rows], positions[rows] = inputs[torch.arange(3), at], at
        step = model.lm_head(model.decoder.step(ids, positions, cache))
        for image in range(3):
            if 0 <= time - starts[image] <= last:
                logits[image, at[image]] = step[rows[image]]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_shorter_window_changes_nothing(transformer_config):
    torch.manual_seed(3)
    model = DalleBart(transformer_config)
    whole, window = model.new_cache(2), model.new_cache(2)
    for position in range(4):
        ids, positions = torch.randint(transformer_config.image_vocab_size, (2,)), torch.tensor([position, 0])
        expected = model.decoder.step(ids, positions, whole)
        torch.testing.assert_close(model.decoder.step(ids, positions, window, length=4), expected)
