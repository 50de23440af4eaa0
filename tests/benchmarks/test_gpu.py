"""The GPU benchmark's own arithmetic, on CPU tensors: it must be right before a GPU is at hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.checkpoints.sizes import MEGA, MINI, SIZES, VQGAN_F16_16384
from benchmarks.gpu import bytes_per_step, measure, random_checkpoint
from dalle_server.engine.runners.torch.runner import TorchRunner


@pytest.mark.parametrize(("config", "num_weights"), [(MINI, 193e6), (MEGA, 1.242e9)])
def test_a_step_reads_every_decoder_weight_once(config, num_weights):
    """Without embeddings, and without the cross-attention's keys and values, which are computed once."""
    cache = bytes_per_step(config, 2, 4) - bytes_per_step(config, 1, 4)
    assert (bytes_per_step(config, 1, 4) - cache) / 4 == pytest.approx(num_weights, rel=0.005)
    assert cache == 2 * 2 * config.decoder_layers * 320 * config.d_model * 4


def test_measures_the_graphs_step_function():
    transformer = replace(
        MINI, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48, image_length=16,
        encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    vqgan = replace(VQGAN_F16_16384, ch=32, ch_mult=(1, 2), num_res_blocks=1, resolution=8)
    checkpoint = random_checkpoint(replace(SIZES["mini"], transformer=transformer, vqgan=vqgan))
    runner = TorchRunner(checkpoint, dtype="bf16", num_slots=2, on_device=True)
    figures = measure(runner, 2, bandwidth=10e9)
    assert 0 < figures["share_of_limit"] < 1
    assert figures["pictures_per_s_with_pixels"] <= figures["pictures_per_s"]  # rounded, and slow on a busy machine
