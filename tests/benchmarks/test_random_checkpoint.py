"""The benchmarks' stand-in checkpoints have the released models' true shapes, and load like real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.checkpoints.dalle_bart import transformer_leaves, vqgan_leaves, write_random_flax, write_random_native
from benchmarks.checkpoints.sizes import MEGA, MINI, VQGAN_F16_16384
from dalle_server.checkpoints import convert, open_checkpoint
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors, vqgan_encoder_tensors
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import ModelConfig, VQGANConfig
from dalle_server.text import TextTokenizer

MANIFESTS = Path(__file__).parents[1] / "data" / "parity" / "manifests"


def manifest(name: str) -> tuple[dict, dict[str, tuple[int, ...]]]:
    raw = json.loads((MANIFESTS / f"{name}.json").read_text())
    return raw["config"], {path: tuple(shape) for path, (shape, _) in raw["params"].items()}


@pytest.mark.parametrize(("name", "config"), [("mini-1", MINI), ("mega-1", MEGA)])
def test_transformer_shapes_are_the_released_ones(name, config):
    released, shapes = manifest(name)
    assert DalleBartConfig.from_dict(released) == config
    assert transformer_leaves(config.tensors()) == shapes


def test_vqgan_shapes_are_the_released_ones():
    released, shapes = manifest("vqgan_imagenet_f16_16384")
    assert VQGANConfig.from_dict(released) == VQGAN_F16_16384
    names = vqgan_decoder_tensors(VQGAN_F16_16384) | vqgan_encoder_tensors(VQGAN_F16_16384)
    assert vqgan_leaves(names) == shapes


@pytest.fixture
def small_mini() -> ModelConfig:
    """Mini's proportions, small enough for a test."""
    transformer = replace(
        MINI, d_model=32, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=50, decoder_ffn_dim=50, image_length=16,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_vocab_size=300, image_vocab_size=64,
        decoder_start_token_id=64,
    )  # fmt: skip
    vqgan = replace(VQGAN_F16_16384, ch=32, ch_mult=(1, 2), n_embed=64, z_channels=16, embed_dim=16, resolution=8)
    return ModelConfig(name="small", transformer=transformer, vqgan=vqgan)


def test_native_form_opens_and_tokenises(tmp_path, small_mini):
    checkpoint = open_checkpoint(write_random_native(tmp_path / "native", small_mini, np.float16))
    assert checkpoint.config.transformer == small_mini.transformer
    assert checkpoint.transformer["lm_head.weight"].dtype == np.float16
    assert TextTokenizer.from_checkpoint(checkpoint).encode("a red apple").length > 5


def test_flax_form_converts(tmp_path, small_mini):
    flax = write_random_flax(tmp_path / "flax", small_mini)
    checkpoint = open_checkpoint(convert(flax, tmp_path / "native"))
    assert checkpoint.config.transformer == small_mini.transformer
    assert set(checkpoint.vqgan) == {*vqgan_decoder_tensors(small_mini.vqgan), *vqgan_encoder_tensors(small_mini.vqgan)}
    spread = checkpoint.transformer["decoder.layers.1.glu.fc0.weight"].std()
    assert 0.8 < spread * small_mini.transformer.d_model**0.5 < 1.2
